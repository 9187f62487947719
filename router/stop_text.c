#include "router/stop_text.h"

#include <stdlib.h>
#include <string.h>

void stop_text_init(struct stop_text *text, const struct stop_string *stops, uint32_t stop_count, bool include_stop)
{
    *text = (struct stop_text){.stops = stops, .stop_count = stop_count, .include_stop = include_stop};
}

void stop_text_fini(struct stop_text *text)
{
    free(text->buffer);
    text->buffer = NULL;
}

static bool grow(struct stop_text *text, size_t more)
{
    if (text->len + more <= text->capacity) { return true; }
    size_t capacity = text->capacity ? text->capacity : 128;
    while (capacity < text->len + more) { capacity *= 2; }
    char *grown = realloc(text->buffer, capacity);
    if (!grown) { return false; }
    text->buffer = grown;
    text->capacity = capacity;
    return true;
}

/* The match in buffer[final_len ..] that ends first; only ends past `from` are new. */
static bool find_match(const struct stop_text *text, size_t from, size_t *ret_start, uint32_t *ret_index)
{
    size_t best_end = SIZE_MAX, best_len = 0;
    for (uint32_t i = 0; i < text->stop_count; i++) {
        const struct stop_string *stop = &text->stops[i];
        /* A match that ends past `from` starts past from - len. */
        size_t start = from >= text->final_len + stop->len ? from - stop->len + 1 : text->final_len;
        if (text->len < start + stop->len) { continue; }
        const char *at = memmem(text->buffer + start, text->len - start, stop->bytes, stop->len);
        if (!at) { continue; }
        size_t end = (size_t)(at - text->buffer) + stop->len;
        if (end < best_end || (end == best_end && stop->len > best_len)) {
            best_end = end;
            best_len = stop->len;
            *ret_index = i;
        }
    }
    *ret_start = best_end - best_len;
    return best_end != SIZE_MAX;
}

/* Bytes at the end that may be the beginning of a stop string. */
static size_t held_len(const struct stop_text *text)
{
    size_t available = text->len - text->final_len, held = 0;
    const char *end = text->buffer + text->len;
    for (uint32_t i = 0; i < text->stop_count; i++) {
        const struct stop_string *stop = &text->stops[i];
        size_t len = stop->len - 1 < available ? stop->len - 1 : available;
        for (; len > held; len--) {
            if (memcmp(end - len, stop->bytes, len) == 0) { held = len; }
        }
    }
    return held;
}

status_t stop_text_push(struct stop_text *text, const char *bytes, size_t len, bool may_match)
{
    if (text->stopped || len == 0) { return STATUS_OK; }
    if (!grow(text, len)) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    size_t from = text->len;
    memcpy(text->buffer + text->len, bytes, len);
    text->len += len;
    if (!may_match || text->stop_count == 0) {
        text->final_len = text->len;
        return STATUS_OK;
    }
    size_t start;
    if (find_match(text, from, &start, &text->stop_index)) {
        text->stopped = true;
        text->len = text->include_stop ? start + text->stops[text->stop_index].len : start;
        text->final_len = text->len;
        return STATUS_OK;
    }
    text->final_len = text->len - held_len(text);
    return STATUS_OK;
}

void stop_text_finish(struct stop_text *text) { text->final_len = text->len; }

void stop_text_take(struct stop_text *text)
{
    text->len -= text->final_len;
    if (text->len > 0) { memmove(text->buffer, text->buffer + text->final_len, text->len); }
    text->final_len = 0;
}
