/* resolver: asks again and again which addresses a name stands for.
 * Flow:    --prefill, --decode names -> [resolver] -> the router's mailbox -> attach_client
 * Thread:  one of its own, since getaddrinfo may block for seconds.
 * Memory:  one answer per name and round.
 *
 * A name that does not exist any more stands for nothing: that is how a headless service says
 * that it has no pods. A resolver that cannot be reached says nothing: what was known stays. */
#ifndef BATON_ROUTER_RESOLVER_H
#define BATON_ROUTER_RESOLVER_H

#include <stdint.h>

#include "base/status.h"
#include "router/node_address.h"

struct resolver;

struct resolver_answer {
    const struct node_address *name; /* an entry of the list given to create */
    uint32_t count;
    char targets[][NODE_TARGET_CHARS_MAX]; /* [count], each once */
};

/* Called on the resolver's thread; answer is malloc'd, and the callee's. */
typedef void (*resolver_fn)(void *user, struct resolver_answer *answer);

/* Starts at once; without a name in the list there is no thread.
 * list  Holds until destroy
 * Errors  RESOURCE_EXHAUSTED (node): no thread. */
NODISCARD status_t resolver_create(const struct node_address_list *list, uint64_t interval_ns, resolver_fn on_answer,
                                   void *user, struct resolver **ret_resolver);

/* Waits for its thread, at most as long as one getaddrinfo takes. Takes NULL. */
void resolver_destroy(struct resolver *resolver);

#endif
