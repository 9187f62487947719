/* stop_text: ends a sequence's text at the first stop string, wherever token borders fall.
 * Flow:    detokenizer -> [stop_text] -> text that is final
 * Thread:  one at a time; pure.
 * Memory:  one buffer per sequence; settles at the longest piece and the longest stop string.
 *
 * Text that may still become a stop string is held back: the longest suffix that is a proper
 * prefix of one. The match that ends first wins, and of those that end together the longest.
 * So the result depends on the text alone, never on how it was cut into tokens. */
#ifndef BATON_ROUTER_STOP_TEXT_H
#define BATON_ROUTER_STOP_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define STOP_STRINGS_MAX 16u
#define STOP_STRING_BYTES_MAX 256u

struct stop_string {
    const char *bytes; /* [len] */
    size_t len;        /* 1 .. STOP_STRING_BYTES_MAX */
};

struct stop_text {
    const struct stop_string *stops; /* [stop_count]; held until fini */
    uint32_t stop_count;
    bool include_stop;
    bool stopped;       /* a stop string was seen; no more text comes */
    uint32_t stop_index; /* which, once stopped */
    char *buffer;
    size_t len;      /* in buffer: final text not yet taken, then what is held back */
    size_t final_len;
    size_t capacity;
};

/* stops  Holds until fini. Takes no memory. */
void stop_text_init(struct stop_text *text, const struct stop_string *stops, uint32_t stop_count, bool include_stop);
void stop_text_fini(struct stop_text *text);

/* Appends text that is final for the detokenizer.
 * may_match  false: this text cannot be or begin a stop (min_tokens); what was held becomes final
 * After a stop, does nothing.
 * Errors  RESOURCE_EXHAUSTED (request): no memory. */
NODISCARD status_t stop_text_push(struct stop_text *text, const char *bytes, size_t len, bool may_match);

/* No more text comes: what is held back is final. */
void stop_text_finish(struct stop_text *text);

/* The final text that was not taken yet: buffer [final_len]. */
void stop_text_take(struct stop_text *text);

#endif
