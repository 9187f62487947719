#include "sched/token_list.h"

#include <stdlib.h>

#include "base/check.h"

struct token_list {
    uint32_t count, max;
    uint32_t given;           /* entries of out[] handed over */
    uint32_t *routers;        /* [max] */
    bool *is_given;           /* [max] */
    struct ctl_token *tokens; /* [max], as added */
    struct ctl_token *out;    /* [max], by router */
};

status_t token_list_create(uint32_t token_max, struct token_list **ret_list)
{
    struct token_list *list = calloc(1, sizeof *list);
    if (list == NULL) { goto fail; }
    list->max = token_max;
    list->routers = calloc(token_max, sizeof *list->routers);
    list->is_given = calloc(token_max, sizeof *list->is_given);
    list->tokens = calloc(token_max, sizeof *list->tokens);
    list->out = calloc(token_max, sizeof *list->out);
    if (list->routers == NULL || list->is_given == NULL || list->tokens == NULL || list->out == NULL) { goto fail; }
    *ret_list = list;
    return STATUS_OK;
fail:
    token_list_destroy(list);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

void token_list_destroy(struct token_list *list)
{
    if (list == NULL) { return; }
    free(list->out);
    free(list->tokens);
    free(list->is_given);
    free(list->routers);
    free(list);
}

void token_list_clear(struct token_list *list)
{
    list->count = 0;
    list->given = 0;
}

struct ctl_token *token_list_add(struct token_list *list, uint32_t router)
{
    CHECK(list->count < list->max);
    list->routers[list->count] = router;
    list->is_given[list->count] = false;
    return &list->tokens[list->count++];
}

bool token_list_next(struct token_list *list, uint32_t *ret_router, struct ctl_tokens *ret_tokens)
{
    uint32_t first = 0;
    while (first < list->count && list->is_given[first]) { first++; }
    if (first == list->count) { return false; }
    uint32_t start = list->given;
    for (uint32_t i = first; i < list->count; i++) {
        if (list->is_given[i] || list->routers[i] != list->routers[first]) { continue; }
        list->is_given[i] = true;
        list->out[list->given++] = list->tokens[i];
    }
    *ret_router = list->routers[first];
    *ret_tokens = (struct ctl_tokens){.count = list->given - start, .tokens = list->out + start};
    return true;
}
