#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "sched/token_list.h"

/* Each router gets all of its tokens once, in the order in which they came. */
static void tokens_go_out_by_router(void **state)
{
    (void)state;
    struct token_list *list;
    assert_false(failed(token_list_create(6, &list)));
    uint32_t router;
    struct ctl_tokens tokens;
    assert_false(token_list_next(list, &router, &tokens));
    const uint32_t routers[6] = {3, 1, 3, 2, 1, 3};
    for (uint32_t round = 0; round < 2; round++) {
        token_list_clear(list);
        for (uint32_t i = 0; i < 6; i++) { token_list_add(list, routers[i])->token = i; }
        assert_true(token_list_next(list, &router, &tokens));
        assert_int_equal(router, 3);
        assert_int_equal(tokens.count, 3);
        const struct ctl_token *first = tokens.tokens;
        assert_true(token_list_next(list, &router, &tokens));
        assert_int_equal(router, 1);
        assert_int_equal(tokens.count, 2);
        assert_int_equal(tokens.tokens[0].token, 1);
        assert_int_equal(tokens.tokens[1].token, 4);
        assert_true(token_list_next(list, &router, &tokens));
        assert_int_equal(router, 2);
        assert_int_equal(tokens.tokens[0].token, 3);
        assert_false(token_list_next(list, &router, &tokens));
        assert_int_equal(first[0].token, 0); /* still good */
        assert_int_equal(first[1].token, 2);
        assert_int_equal(first[2].token, 5);
    }
    token_list_destroy(list);
    token_list_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tokens_go_out_by_router)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
