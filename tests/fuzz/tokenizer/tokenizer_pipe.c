/* tokenizer_pipe: a tokenizer behind stdin and stdout, so that a script can hold it beside
 * another implementation (tokenizer_diff.py, bench/tokenizer).
 * A request is: operation (1 byte), flags (1 byte), payload bytes (u32), payload. A reply is:
 * status code (1 byte), payload bytes (u32), payload; the diag's text when the code is not 0.
 * All numbers are little-endian, as every machine we run on is.
 *   e  text to ids (u32 each); flags: 1 add_special, 2 parse_special
 *   d  ids to text; flags: 1 skip_special
 *   s  ids to pieces, each its bytes (u32) and the text, the flush last; flags as d
 *   b  text, encoded 'flags' times: nanoseconds of each (u64) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "model/tokenizer/detokenizer.h"
#include "model/tokenizer/tokenizer.h"

static bool read_all(void *data, size_t len) { return fread(data, 1, len, stdin) == len; }

static void write_all(const void *data, size_t len)
{
    if (fwrite(data, 1, len, stdout) != len) { exit(1); }
}

static status_t pieces(const struct tokenizer *tokenizer, const uint32_t *ids, size_t count, bool skip,
                       struct text_buf *out)
{
    struct detokenizer *detokenizer = NULL;
    TRY(detokenizer_create(tokenizer, skip, &detokenizer));
    status_t st = STATUS_OK;
    for (size_t i = 0; i <= count && !failed(st); i++) {
        size_t at = out->len;
        uint32_t len = 0;
        st = text_buf_append(out, (const char *)&len, sizeof len);
        if (failed(st)) { break; }
        st = i < count ? detokenizer_push(detokenizer, ids[i], out) : detokenizer_flush(detokenizer, out);
        len = (uint32_t)(out->len - at - sizeof len);
        memcpy(out->data + at, &len, sizeof len);
    }
    detokenizer_destroy(detokenizer);
    return st;
}

static status_t measure(const struct tokenizer *tokenizer, const char *text, size_t len, unsigned times,
                        struct text_buf *out, struct diag *diag)
{
    struct token_buf ids = {0};
    status_t st = STATUS_OK;
    for (unsigned i = 0; i < times && !failed(st); i++) {
        ids.count = 0;
        uint64_t start = clock_now_ns();
        st = tokenizer_encode(tokenizer, text, len, (struct encode_options){false, true}, &ids, diag);
        uint64_t took = clock_now_ns() - start;
        if (!failed(st)) { st = text_buf_append(out, (const char *)&took, sizeof took); }
    }
    token_buf_fini(&ids);
    return st;
}

int main(int argc, char **argv)
{
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    if (argc != 2) { fprintf(stderr, "usage: tokenizer_pipe DIR\n"); return 2; }
    uint64_t start = clock_now_ns();
    status_t st = tokenizer_create(argv[1], &tokenizer, &diag);
    if (failed(st)) { fprintf(stderr, "%s: %s\n", status_code_name(st.code), diag.text); return 1; }
    fprintf(stderr, "event=loaded dir=%s ms=%.1f tokens=%u\n", argv[1], (double)(clock_now_ns() - start) / 1e6,
            tokenizer_vocab_size(tokenizer));
    struct text_buf request = {0}, reply = {0};
    struct token_buf ids = {0};
    unsigned char head[2];
    uint32_t len;
    while (read_all(head, sizeof head) && read_all(&len, sizeof len)) {
        request.len = reply.len = ids.count = 0;
        if (failed(text_buf_reserve(&request, (size_t)len + 1)) || !read_all(request.data, len)) { return 1; }
        diag.text[0] = '\0';
        switch (head[0]) {
        case 'e':
            st = tokenizer_encode(tokenizer, request.data, len, (struct encode_options){head[1] & 1, (head[1] & 2) != 0},
                                  &ids, &diag);
            if (!failed(st)) { st = text_buf_append(&reply, (const char *)ids.ids, ids.count * sizeof *ids.ids); }
            break;
        case 'd': st = tokenizer_decode(tokenizer, (const uint32_t *)(void *)request.data, len / 4, head[1] & 1, &reply); break;
        case 's': st = pieces(tokenizer, (const uint32_t *)(void *)request.data, len / 4, head[1] & 1, &reply); break;
        case 'b': st = measure(tokenizer, request.data, len, head[1], &reply, &diag); break;
        default: return 2;
        }
        if (failed(st)) {
            reply.len = 0;
            if (failed(text_buf_append(&reply, diag.text, strlen(diag.text)))) { return 1; }
        }
        len = (uint32_t)reply.len;
        write_all(&st.code, 1);
        write_all(&len, sizeof len);
        write_all(reply.data ? reply.data : "", reply.len);
        fflush(stdout);
    }
    text_buf_fini(&request);
    text_buf_fini(&reply);
    token_buf_fini(&ids);
    tokenizer_destroy(tokenizer);
    return 0;
}
