/* Two endpoints in one process, over real cables and a socket for the link. What processes
 * do to each other is in tests/conformance. */
#include "transfer/transfer.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/unit/transfer/endpoint_nodes.h"

/* A configuration that cannot work is refused by a sentence that names what is wrong. */
static void bad_configurations_are_refused(void **state)
{
    (void)state;
    for (int field = 0; field < 8; field++) {
        struct kv_endpoint_config config = config_of(&p, false);
        struct kv_endpoint *endpoint = NULL;
        struct diag diag = {.text = ""};
        const char *want = "";
        char long_id[80];
        memset(long_id, 'x', 79);
        long_id[79] = '\0';
        switch (field) {
        case 0: config.node_id = ""; want = "node_id"; break;
        case 1: config.node_id = long_id; want = "node_id"; break;
        case 2: config.cables = "carrier-pigeon"; want = "carrier-pigeon"; break;
        case 3: config.cables = "tcp,tcp"; want = "twice"; break;
        case 4: config.pool.bytes = 10; want = "pool"; break;
        case 5: config.tls.cert_file = "/nonexistent.pem"; want = "TLS"; break;
        case 6: config.tcp_listen = "nowhere"; want = "host:port"; break;
        default: config.tls = (struct kv_endpoint_tls){"/nonexistent.pem", "/k", "/c"}; want = "/nonexistent.pem"; break;
        }
        assert_true(failed(kv_endpoint_create(&config, &diag, &endpoint)));
        assert_null(endpoint);
        if (!strstr(diag.text, want)) { fail_msg("case %d: \"%s\" does not name %s", field, diag.text, want); }
    }
}

/* A grant is refused, and takes nothing, when blocks are named twice, granted already or out of
 * the pool, when the id is live, and when the table is full. */
static void grants_are_checked(void **state)
{
    (void)state;
    const uint32_t twice[3] = {50, 51, 50}, outside[2] = {50, BLOCKS}, shared[2] = {60, 3}, fresh[2] = {50, 51};
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, run, 0, 1000, NULL, ticket, &ticket_bytes).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, run, 49, 1000, NULL, ticket, &ticket_bytes).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, run, 1, 0, NULL, ticket, &ticket_bytes).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, run, 48, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, fresh, 2, 1000, NULL, ticket, &ticket_bytes).code, ST_ALREADY_EXISTS);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id2, twice, 3, 1000, NULL, ticket, &ticket_bytes).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id2, outside, 2, 1000, NULL, ticket, &ticket_bytes).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id2, shared, 2, 1000, NULL, ticket, &ticket_bytes).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id2, fresh, 2, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    for (uint32_t i = 0; i < 2; i++) {
        const kv_xfer_id_t id = {{(uint8_t)(10 + i)}};
        const uint32_t block = 52 + i;
        assert_int_equal(kv_endpoint_grant(d.endpoint, id, &block, 1, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    }
    const kv_xfer_id_t fifth = {{99}};
    const uint32_t block = 60;
    assert_int_equal(kv_endpoint_grant(d.endpoint, fifth, &block, 1, 60000, NULL, ticket, &ticket_bytes).code, ST_RESOURCE_EXHAUSTED);
    /* After the revoke its slot and its blocks serve again, from inside the event too. */
    kv_endpoint_revoke(d.endpoint, id1);
    kv_endpoint_revoke(d.endpoint, id1); /* counted, ignored */
    struct kv_event event = event_wait(&d);
    assert_int_equal(event.kind, KV_EVENT_FENCED);
    assert_true(kv_xfer_id_equal(event.xfer_id, id1));
    assert_int_equal(kv_endpoint_grant(d.endpoint, fifth, run, 48, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    /* P does not grant: it has no address. */
    assert_int_equal(kv_endpoint_grant(p.endpoint, id1, run, 1, 1000, NULL, ticket, &ticket_bytes).code, ST_INVALID_ARGUMENT);
}

/* Pushes and commits are bounded by the ticket; a stale handle does nothing. */
static void pushes_are_checked(void **state)
{
    (void)state;
    kv_send_t send = {0};
    const uint32_t outside[1] = {BLOCKS};
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, run, 4, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    assert_int_equal(kv_endpoint_send_begin(p.endpoint, ticket, ticket_bytes - 1, NULL, NULL, &send).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 0, run, 1, 0).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_send_begin(p.endpoint, ticket, ticket_bytes, &p, NULL, &send).code, ST_OK);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, LAYERS, 0, run, 1, 0).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 4, run, 1, 0).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, UINT32_MAX, run, 2, 0).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 0, outside, 1, 0).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 0, run, 4, 0).code, ST_OK);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 0, run, 1, 0).code, ST_INVALID_ARGUMENT); /* a fifth of four */
    assert_int_equal(kv_endpoint_commit(p.endpoint, send, "x", 1).code, ST_INVALID_ARGUMENT);    /* a layer is missing */
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 1, 0, run, 4, 0).code, ST_OK);
    assert_int_equal(kv_endpoint_commit(p.endpoint, send, "x", KV_PAYLOAD_BYTES_MAX + 1).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_endpoint_commit(p.endpoint, send, "tokens", 6).code, ST_OK);
    assert_int_equal(kv_endpoint_commit(p.endpoint, send, "tokens", 6).code, ST_INVALID_ARGUMENT);
    struct kv_event event = event_wait(&p);
    assert_int_equal(event.kind, KV_EVENT_ACKED);
    assert_ptr_equal(event.user, &p);
    assert_true(event.send.value == send.value);
    assert_string_equal(event.stats.cable, "tcp");
    assert_int_equal(event.stats.bytes, 4 * kv_layout_block_bytes(&layout));
    event = event_wait(&d);
    assert_int_equal(event.kind, KV_EVENT_LANDED);
    assert_int_equal(d.payload_bytes, 6);
    assert_memory_equal(d.payload, "tokens", 6);
    kv_endpoint_abort(p.endpoint, send); /* stale: counted, ignored */
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 0, run, 1, 0).code, ST_INVALID_ARGUMENT);
    struct kv_endpoint_stats stats;
    kv_endpoint_stats_get(p.endpoint, &stats);
    assert_int_equal(stats.acked, 1);
    assert_int_equal(stats.sends_live, 0);
}

/* When pushes_max are under way a push takes nothing and says so; PUSH_DONE makes room. */
static void a_full_push_table_refuses(void **state)
{
    (void)state;
    kv_send_t send;
    const kv_xfer_id_t ghost = {{77}};
    struct kv_ticket nowhere;
    assert_int_equal(kv_endpoint_grant(d.endpoint, ghost, run, 16, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    assert_int_equal(kv_ticket_decode(ticket, ticket_bytes, NULL, &nowhere).code, ST_OK);
    strcpy(nowhere.link_address, "127.0.0.1:1"); /* nobody answers there: pushes wait */
    strcpy(nowhere.node_id, "d9");
    kv_ticket_encode(&nowhere, ticket, &ticket_bytes);
    assert_int_equal(kv_endpoint_send_begin(p.endpoint, ticket, ticket_bytes, NULL, NULL, &send).code, ST_OK);
    uint32_t took = 0;
    status_t st = STATUS_OK;
    while (took < 16 && !failed(st)) {
        st = kv_endpoint_push(p.endpoint, send, 0, took, run, 1, 0);
        took += !failed(st);
    }
    /* Either the table filled, or the refused connection ended the send before it could. */
    assert_true(st.code == ST_RESOURCE_EXHAUSTED ? took == 8 : st.code == ST_INVALID_ARGUMENT);
    struct kv_event event = event_wait(&p);
    assert_int_equal(event.kind, KV_EVENT_SEND_FAILED);
    assert_int_equal(event.status.code, ST_UNAVAILABLE);
    /* All eight records came back: a whole transfer through the same table. */
    assert_int_equal(kv_endpoint_grant(d.endpoint, id2, run + 16, 16, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    assert_int_equal(kv_endpoint_send_begin(p.endpoint, ticket, ticket_bytes, NULL, NULL, &send).code, ST_OK);
    for (uint32_t i = 0; i < 16 * LAYERS;) {
        st = kv_endpoint_push(p.endpoint, send, i / 16, i % 16, run, 1, 0);
        if (failed(st)) {
            assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
            clock_sleep_ns(NS_PER_MS);
        } else {
            i++;
        }
    }
    assert_int_equal(kv_endpoint_commit(p.endpoint, send, NULL, 0).code, ST_OK);
    assert_int_equal(event_wait(&p).kind, KV_EVENT_ACKED);
    assert_int_equal(event_wait(&d).kind, KV_EVENT_LANDED);
}

/* An endpoint goes away in the middle of everything without an event and without a leak; its
 * peer learns at once. */
static void destroy_in_mid_transfer(void **state)
{
    (void)state;
    kv_send_t send;
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, run, 8, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    assert_int_equal(kv_endpoint_send_begin(p.endpoint, ticket, ticket_bytes, NULL, NULL, &send).code, ST_OK);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 0, run, 8, 0).code, ST_OK);
    for (int i = 0; i < 30000; i++) {
        struct kv_endpoint_stats stats;
        kv_endpoint_stats_get(d.endpoint, &stats);
        if (stats.slices_landed == 8) { break; }
        clock_sleep_ns(NS_PER_MS);
    }
    socket_streams_stop(p.streams);
    kv_endpoint_destroy(p.endpoint);
    p.endpoint = NULL;
    struct kv_event event = event_wait(&d);
    assert_int_equal(event.kind, KV_EVENT_FAILED);
    assert_true(event.fenced);
    assert_int_equal(event.status.code, ST_UNAVAILABLE);
}

static uint32_t kv_sockets_in(const char *dir)
{
    uint32_t count = 0;
    DIR *folder = opendir(dir);
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) { count += strncmp(entry->d_name, "baton-kv-", 9) == 0; }
    closedir(folder);
    return count;
}

/* An endpoint of shm without a folder of its own. */
static status_t open_shm(struct diag *diag)
{
    struct kv_endpoint_config config = config_of(&d, true);
    config.cables = "shm";
    config.link_address = socket_streams_address(d.streams);
    config.stream_context = d.streams;
    struct kv_endpoint *endpoint = NULL;
    status_t st = kv_endpoint_create(&config, diag, &endpoint);
    if (!failed(st)) {
        d.seen = kv_sockets_in(getenv("XDG_RUNTIME_DIR"));
        kv_endpoint_destroy(endpoint);
    }
    return st;
}

/* Without --uds-dir the socket lies where no other user can look: in the session's folder if
 * that is closed to others, else in one of our own. */
static void the_socket_lies_in_a_private_folder(void **state)
{
    (void)state;
    char session[] = "/tmp/endpoint_test.XXXXXX", own[64];
    struct stat info;
    struct diag diag = {.text = ""};
    assert_non_null(mkdtemp(session)); /* 0700 */
    setenv("XDG_RUNTIME_DIR", session, 1);
    assert_false(failed(open_shm(&diag)));
    assert_int_equal(d.seen, 1);
    assert_int_equal(chmod(session, 0755), 0);
    assert_false(failed(open_shm(&diag)));
    assert_int_equal(d.seen, 0);
    snprintf(own, sizeof own, "/tmp/baton-%u", (unsigned)geteuid());
    assert_int_equal(lstat(own, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0700);
    assert_int_equal(info.st_uid, geteuid());
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(rmdir(session), 0);
}

static void two_formats(struct kv_endpoint_config *config, bool receives)
{
    config->fingerprint.converts = true;
    if (receives) { config->fingerprint.layout.dtype = DTYPE_FP8_E4M3; }
}

static int nodes_start_two_formats(void **state)
{
    (void)state;
    return nodes_start_with(two_formats);
}

/* Two pools of two formats may meet if both say so, and then a cable that would place the wrong bytes is not taken. */
static void a_cable_that_does_not_convert_is_passed_over(void **state)
{
    (void)state;
    kv_send_t send;
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, run, 1, 20000, NULL, ticket, &ticket_bytes).code, ST_OK);
    assert_int_equal(kv_endpoint_send_begin(p.endpoint, ticket, ticket_bytes, NULL, NULL, &send).code, ST_OK);
    struct kv_event event = event_wait(&p);
    assert_int_equal(event.kind, KV_EVENT_SEND_FAILED);
    assert_int_equal(event.status.code, ST_UNAVAILABLE);
    assert_non_null(strstr(event.text, "no cable works: tcp does not convert "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_cable_that_does_not_convert_is_passed_over, nodes_start_two_formats, nodes_stop),
        cmocka_unit_test_setup_teardown(bad_configurations_are_refused, nodes_start, nodes_stop),
        cmocka_unit_test_setup_teardown(grants_are_checked, nodes_start, nodes_stop),
        cmocka_unit_test_setup_teardown(pushes_are_checked, nodes_start, nodes_stop),
        cmocka_unit_test_setup_teardown(a_full_push_table_refuses, nodes_start, nodes_stop),
        cmocka_unit_test_setup_teardown(destroy_in_mid_transfer, nodes_start, nodes_stop),
        cmocka_unit_test_setup_teardown(the_socket_lies_in_a_private_folder, nodes_start, nodes_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
