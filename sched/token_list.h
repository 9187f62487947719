/* token_list: gathers the tokens of one event, so that each router gets them in one message.
 * Flow:    a step's samples, landed first tokens -> [token_list] -> one CTL_TOKENS per router
 * Thread:  the core's.
 * Memory:  taken in create; nothing afterwards. */
#ifndef BATON_SCHED_TOKEN_LIST_H
#define BATON_SCHED_TOKEN_LIST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "control/ctl_msg.h"

struct token_list;

/* Errors  RESOURCE_EXHAUSTED (node): no memory. */
NODISCARD status_t token_list_create(uint32_t token_max, struct token_list **ret_list);
void token_list_destroy(struct token_list *list); /* takes NULL */

void token_list_clear(struct token_list *list);

/* Room for one more token (CHECK); the order within a router is the order of adding. */
struct ctl_token *token_list_add(struct token_list *list, uint32_t router);

/* The next router's tokens, each router once; false when all were given. Call after the last
 * add. ret_tokens is good until the next clear. */
bool token_list_next(struct token_list *list, uint32_t *ret_router, struct ctl_tokens *ret_tokens);

#endif
