/* TLS and mTLS with certificates made for the run. */
#include "tests/unit/rpc/rpc_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static char folder[512];
static char paths[8][600];
enum { CA, SERVER_CERT, SERVER_KEY, CLIENT_CERT, CLIENT_KEY, STRANGER_CERT, STRANGER_KEY };

/* A CA, a server and a client signed by it, and a stranger who signed himself. */
static const char recipe[] =
    "set -e; cd '%s'; "
    "new='openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'; "
    "$new -x509 -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem; "
    "for who in server client; do "
    "$new -subj /CN=$who -keyout $who.key -out $who.csr; "
    "printf 'subjectAltName=DNS:%%s.test\\n' $who > $who.ext; "
    "openssl x509 -req -days 2 -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile $who.ext -out $who.pem; "
    "done; "
    "$new -x509 -days 2 -subj /CN=stranger -keyout stranger.key -out stranger.pem";

static int make_certificates(void **state)
{
    (void)state;
    const char *tmp = getenv("TEST_TMPDIR");
    snprintf(folder, sizeof folder, "%s/rpc_tls_XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (mkdtemp(folder) == NULL) {
        return -1;
    }
    static const char *const names[] = {"ca.pem",     "server.pem",   "server.key",  "client.pem",
                                        "client.key", "stranger.pem", "stranger.key"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
    }
    char command[2048], whole[2200];
    snprintf(command, sizeof command, recipe, folder);
    snprintf(whole, sizeof whole, "(%s) >/dev/null 2>&1", command);
    return system(whole);
}

static int remove_certificates(void **state)
{
    (void)state;
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

static void echo_once(struct rig *rig, struct ear *client)
{
    ear_init(client);
    struct rpc_call *call = rig_call(rig, "/test.T/Echo", client);
    (void)!rpc_call_send(call, "secret", 6).code;
    rpc_call_half_close(call);
    ear_wait(client, &client->dones, 1);
    rpc_call_unref(call);
}

static void tls_rig(struct rig *rig, bool is_mutual)
{
    rig_init(rig);
    rig->server_config.tls = (struct rpc_tls){.enabled = true, .cert_file = paths[SERVER_CERT],
                                              .key_file = paths[SERVER_KEY], .ca_file = is_mutual ? paths[CA] : NULL};
    rig->channel_config.tls =
        (struct rpc_tls){.enabled = true, .ca_file = paths[CA], .server_name = "server.test"};
}

/* A client that does not trust the server's CA, or meets another name, or speaks plain text, or
 * has no certificate that mTLS asks for, gets nothing but UNAVAILABLE. */
static void strangers_are_kept_out(void **state)
{
    (void)state;
    for (int kind = 0; kind < 5; kind++) {
        struct rig rig;
        tls_rig(&rig, kind >= 3);
        switch (kind) {
        case 0: rig.channel_config.tls.ca_file = paths[STRANGER_CERT]; break;
        case 1: rig.channel_config.tls.server_name = "other.test"; break;
        case 2: rig.channel_config.tls = (struct rpc_tls){0}; break;
        case 3: break; /* no certificate */
        default:
            rig.channel_config.tls.cert_file = paths[STRANGER_CERT];
            rig.channel_config.tls.key_file = paths[STRANGER_KEY];
        }
        rig_start(&rig);
        struct ear client;
        echo_once(&rig, &client);
        assert_int_equal(client.outcome.code, ST_UNAVAILABLE);
        assert_int_equal(client.messages, 0);
        rig_stop(&rig);
        ear_fini(&client);
    }
}

/* Over TLS a call works as over plain text. */
static void tls_carries_calls(void **state)
{
    (void)state;
    struct rig rig;
    tls_rig(&rig, false);
    rig_start(&rig);
    struct ear client;
    echo_once(&rig, &client);
    assert_int_equal(client.outcome.code, ST_OK);
    assert_memory_equal(client.last, "secret", 6);
    rig_stop(&rig);
    ear_fini(&client);
}

/* With mTLS the server knows who calls: the name in the client's certificate. */
static void mtls_names_the_client(void **state)
{
    (void)state;
    struct rig rig;
    tls_rig(&rig, true);
    rig.channel_config.tls.cert_file = paths[CLIENT_CERT];
    rig.channel_config.tls.key_file = paths[CLIENT_KEY];
    rig_start(&rig);
    struct ear server, client;
    rig_expect(&rig, &server);
    ear_init(&client);
    struct rpc_call *call = rig_call(&rig, "/test.T/Ear", &client);
    ear_wait(&server, &server.next, 1);
    char identity[64];
    assert_true(rpc_call_peer_identity(server.call, identity, sizeof identity));
    assert_string_equal(identity, "client.test");
    assert_false(failed(rpc_call_finish(server.call, ST_OK, "", NULL, 0)));
    ear_wait(&client, &client.dones, 1);
    assert_int_equal(client.outcome.code, ST_OK);
    rpc_call_unref(call);
    rig_stop(&rig);
    ear_fini(&client);
}

int main(void)
{
    if (system("openssl version >/dev/null 2>&1") != 0) {
        printf("SKIPPED: the openssl command, which makes the test's certificates, is not installed\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_are_kept_out),
        cmocka_unit_test(tls_carries_calls),
        cmocka_unit_test(mtls_names_the_client),
    };
    return cmocka_run_group_tests(tests, make_certificates, remove_certificates);
}
