/* Claim: a list of nodes is read entry by entry, and a bad entry is named with its flag. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "router/node_address.h"
#include "router/router_config.h"

static status_t add(struct node_address_list *list, const char *text, struct diag *diag)
{
    struct flag_list values = {.count = 1, .values = {text}};
    return node_address_add(list, NODE_ROLE_DECODE, "decode", &values, diag);
}

/* Empty entries, missing and impossible ports, and doubles are refused by name. */
static void bad_entries_are_named(void **state)
{
    (void)state;
    static const char *const bad[] = {"", ",", "a:1,", "a", "a:", "a:0", "a:70000", ":5", "::1:5", "[a:b]:5", "a:1,a:1",
                                      "a:b:1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        static struct node_address_list list;
        memset(&list, 0, sizeof list);
        struct diag diag = {{0}};
        status_t st = add(&list, bad[i], &diag);
        if (st.code != ST_INVALID_ARGUMENT) { fail_msg("\"%s\" was taken", bad[i]); }
        assert_non_null(strstr(diag.text, "--decode"));
    }
}

/* Numbers are fixed nodes, names are resolved; brackets belong to the text only. */
static void lists_are_read_in_order(void **state)
{
    (void)state;
    static struct node_address_list list;
    memset(&list, 0, sizeof list);
    struct diag diag = {{0}};
    struct flag_list values = {.count = 2, .values = {"10.0.0.1:7000,[::1]:7001", "decode.default.svc:7002"}};
    assert_false(failed(node_address_add(&list, NODE_ROLE_PREFILL, "prefill", &values, &diag)));
    assert_int_equal(list.count, 3);
    assert_true(list.entries[0].is_numeric);
    assert_true(list.entries[1].is_numeric);
    assert_string_equal(list.entries[1].host, "::1");
    assert_false(list.entries[2].is_numeric);
    assert_int_equal(list.entries[2].port, 7002);
    assert_int_equal(list.entries[2].role, NODE_ROLE_PREFILL);
    char target[NODE_TARGET_CHARS_MAX];
    node_address_target(list.entries[1].host, list.entries[1].port, target);
    assert_string_equal(target, "[::1]:7001");
    /* The same address in the other role is a mistake too. */
    assert_true(failed(add(&list, "10.0.0.1:7000", &diag)));
}

/* The list is bounded. */
static void the_list_is_bounded(void **state)
{
    (void)state;
    static struct node_address_list list;
    memset(&list, 0, sizeof list);
    struct diag diag = {{0}};
    char text[32];
    for (unsigned i = 0; i < NODE_ADDRESSES_MAX; i++) {
        snprintf(text, sizeof text, "h:%u", i + 1);
        assert_false(failed(add(&list, text, &diag)));
    }
    assert_true(failed(add(&list, "h:60000", &diag)));
    assert_non_null(strstr(diag.text, "256"));
}

static status_t parse(struct router_config *config, int argc, const char *const *argv, struct diag *diag)
{
    bool help;
    char *copy[8] = {(char *)"router"};
    for (int i = 0; i < argc; i++) { copy[i + 1] = (char *)argv[i]; }
    TRY(flags_parse(router_flags, router_flag_count, config, argc + 1, copy, NULL, NULL, &help, diag));
    return router_config_check(config, diag);
}

/* The flags' table: what is missing, out of range or half given is named. */
static void flags_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *argv[3];
        const char *named;
    } bad[] = {
        {{"--decode=a:1"}, "--model"},
        {{"--model=x"}, "--decode"},
        {{"--model=x", "--decode=a:1", "--requests-max=0"}, "--requests-max"},
        {{"--model=x", "--decode=a:1", "--tls-cert=c"}, "--tls-key"},
        {{"--model=x", "--decode=a:1", "--resolve-interval=1ms"}, "--resolve-interval"},
        {{"--model=x", "--decode=a:1", "--prefil=b:1"}, "--prefill"},
        {{"--model=x", "--decode=a:1", "--prefix-cache=yes"}, "--prefix-cache"},
        {{"--model=x", "--decode=a:1", "--local-prefill-tokens=much"}, "auto"},
        {{"--model=x", "--decode=a:1", "--local-prefill-tokens="}, "auto"},
        {{"--model=x", "--decode=a:1", "--local-prefill-tokens=18446744073709551617"}, "1048576"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct router_config config;
        struct diag diag = {{0}};
        int argc = 0;
        while (argc < 3 && bad[i].argv[argc]) { argc++; }
        assert_int_equal(parse(&config, argc, bad[i].argv, &diag).code, ST_INVALID_ARGUMENT);
        if (!strstr(diag.text, bad[i].named)) { fail_msg("\"%s\" does not name %s", diag.text, bad[i].named); }
    }
    struct router_config config;
    struct diag diag = {{0}};
    const char *good[] = {"--model=x", "--decode=a:1,b:2", "--decode=c:3"};
    assert_false(failed(parse(&config, 3, good, &diag)));
    assert_int_equal(config.decode.count, 2);
    assert_int_equal(config.requests_max, 1024);
    bool predict;
    uint32_t tokens;
    assert_true(router_config_local_prefill(&config, &predict, &tokens));
    assert_true(predict && tokens == 0);
    config.local_prefill_tokens = "1048576";
    assert_true(router_config_local_prefill(&config, &predict, &tokens));
    assert_true(!predict && tokens == 1048576);
    assert_true(config.resume_wait_ns == UINT64_C(120000000000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_entries_are_named), cmocka_unit_test(lists_are_read_in_order),
        cmocka_unit_test(the_list_is_bounded), cmocka_unit_test(flags_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
