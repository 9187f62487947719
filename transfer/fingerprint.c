#include "transfer/fingerprint.h"

#include <openssl/sha.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "transfer/little_endian.h"

#define WIRE_VERSION 1u
#define ORDER_SHIFT 8u
#define CONVERTS_SHIFT 16u

/* Above these no model known to us lies within a factor of 8; a decoder that accepts more
 * only hands overflow to its caller. */
#define BLOCK_TOKENS_MAX 1024u
#define LAYERS_MAX 4096u
#define HEADS_MAX 4096u
#define HEAD_DIM_MAX 4096u

enum {
    AT_MODEL = 1, AT_DTYPE = 33, AT_BLOCK_TOKENS = 37, AT_LAYERS = 41, AT_HEADS = 45, AT_HEAD_DIM = 49,
    AT_LAYOUT_VERSION = 53, AT_KERNELS = 57,
};
_Static_assert(AT_KERNELS + KV_KERNEL_SET_CHARS_MAX + 1 == KV_FINGERPRINT_WIRE_BYTES, "the last field ends the wire form");

void kv_fingerprint_init(struct kv_fingerprint *ret_fingerprint, const uint8_t model_hash[32],
                         const struct kv_layout *layout, const char *kernel_set)
{
    memset(ret_fingerprint, 0, sizeof *ret_fingerprint);
    memcpy(ret_fingerprint->model_hash, model_hash, sizeof ret_fingerprint->model_hash);
    ret_fingerprint->layout = *layout;
    ret_fingerprint->layout_version = KV_LAYOUT_VERSION;
    snprintf(ret_fingerprint->kernel_set, sizeof ret_fingerprint->kernel_set, "%s", kernel_set);
}

void kv_fingerprint_encode(const struct kv_fingerprint *fingerprint, uint8_t ret_wire[KV_FINGERPRINT_WIRE_BYTES])
{
    memset(ret_wire, 0, KV_FINGERPRINT_WIRE_BYTES);
    ret_wire[0] = WIRE_VERSION;
    memcpy(ret_wire + AT_MODEL, fingerprint->model_hash, 32);
    /* The order of values lies above the dtype, and what they may be converted above that, where nodes that know of
     * neither wrote zeros and refuse all else. */
    le32_store(ret_wire + AT_DTYPE, (uint32_t)fingerprint->layout.dtype | (uint32_t)fingerprint->layout.order << ORDER_SHIFT |
                                    (uint32_t)fingerprint->converts << CONVERTS_SHIFT);
    le32_store(ret_wire + AT_BLOCK_TOKENS, fingerprint->layout.block_tokens);
    le32_store(ret_wire + AT_LAYERS, fingerprint->layout.layer_count);
    le32_store(ret_wire + AT_HEADS, fingerprint->layout.kv_heads);
    le32_store(ret_wire + AT_HEAD_DIM, fingerprint->layout.head_dim);
    le32_store(ret_wire + AT_LAYOUT_VERSION, fingerprint->layout_version);
    /* Up to the NUL only: what lies behind it in memory is nobody's. */
    memcpy(ret_wire + AT_KERNELS, fingerprint->kernel_set, strnlen(fingerprint->kernel_set, KV_KERNEL_SET_CHARS_MAX));
}

static status_t refuse(struct diag *diag, const char *field, uint32_t value)
{
    diag_set(diag, "layout fingerprint: %s is %u, which no node of this version sends", field, value);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER);
}

status_t kv_fingerprint_decode(const void *wire, size_t wire_bytes, struct diag *diag,
                               struct kv_fingerprint *ret_fingerprint)
{
    const uint8_t *at = wire;
    if (wire_bytes != KV_FINGERPRINT_WIRE_BYTES) { return refuse(diag, "its size in bytes", (uint32_t)wire_bytes); }
    if (at[0] != WIRE_VERSION) { return refuse(diag, "its version", at[0]); }
    uint32_t values = le32_load(at + AT_DTYPE), converts = values >> CONVERTS_SHIFT;
    uint32_t dtype = values & ((1u << ORDER_SHIFT) - 1), order = values >> ORDER_SHIFT & ((1u << (CONVERTS_SHIFT - ORDER_SHIFT)) - 1);
    uint32_t block_tokens = le32_load(at + AT_BLOCK_TOKENS);
    uint32_t layers = le32_load(at + AT_LAYERS);
    uint32_t heads = le32_load(at + AT_HEADS);
    uint32_t head_dim = le32_load(at + AT_HEAD_DIM);
    if (dtype >= DTYPE_KV_COUNT) { return refuse(diag, "dtype", dtype); }
    if (order >= KV_ORDER_COUNT) { return refuse(diag, "the order of values", order); }
    if (converts > 1) { return refuse(diag, "what it converts", converts); }
    if (block_tokens == 0 || block_tokens > BLOCK_TOKENS_MAX) { return refuse(diag, "block_tokens", block_tokens); }
    if (layers == 0 || layers > LAYERS_MAX) { return refuse(diag, "layer_count", layers); }
    if (heads == 0 || heads > HEADS_MAX) { return refuse(diag, "kv_heads", heads); }
    if (head_dim == 0 || head_dim > HEAD_DIM_MAX) { return refuse(diag, "head_dim", head_dim); }
    const uint8_t *kernels = at + AT_KERNELS;
    size_t chars = strnlen((const char *)kernels, KV_KERNEL_SET_CHARS_MAX + 1);
    if (chars > KV_KERNEL_SET_CHARS_MAX) { return refuse(diag, "length of kernel_set", (uint32_t)chars); }
    for (size_t i = 0; i < chars; i++) {
        if (kernels[i] < 0x21 || kernels[i] > 0x7e) { return refuse(diag, "a character of kernel_set", kernels[i]); }
    }
    for (size_t i = chars; i <= KV_KERNEL_SET_CHARS_MAX; i++) {
        if (kernels[i] != 0) { return refuse(diag, "padding of kernel_set", kernels[i]); }
    }
    memset(ret_fingerprint, 0, sizeof *ret_fingerprint);
    memcpy(ret_fingerprint->model_hash, at + AT_MODEL, 32);
    ret_fingerprint->layout = (struct kv_layout){.block_tokens = block_tokens, .layer_count = layers,
                                                 .kv_heads = heads, .head_dim = head_dim, .dtype = (enum dtype)dtype,
                                                 .order = (enum kv_order)order};
    ret_fingerprint->layout_version = le32_load(at + AT_LAYOUT_VERSION);
    memcpy(ret_fingerprint->kernel_set, kernels, chars);
    ret_fingerprint->converts = converts == 1;
    return STATUS_OK;
}

void kv_fingerprint_hash(const struct kv_fingerprint *fingerprint, uint8_t ret_hash[KV_FINGERPRINT_HASH_BYTES])
{
    uint8_t wire[KV_FINGERPRINT_WIRE_BYTES];
    struct kv_fingerprint copy = *fingerprint;
    copy.converts = false;
    kv_fingerprint_encode(&copy, wire);
    SHA256(wire, sizeof wire, ret_hash);
}

/* The bit stays set, so that no hash of the other kind is this one. */
void kv_fingerprint_convert_hash(const struct kv_fingerprint *fingerprint, uint8_t ret_hash[KV_FINGERPRINT_HASH_BYTES])
{
    uint8_t wire[KV_FINGERPRINT_WIRE_BYTES];
    struct kv_fingerprint copy = *fingerprint;
    copy.layout.dtype = (enum dtype)0;
    copy.layout.order = (enum kv_order)0;
    copy.converts = true;
    kv_fingerprint_encode(&copy, wire);
    SHA256(wire, sizeof wire, ret_hash);
}

static bool is_same_hash(void (*hash)(const struct kv_fingerprint *fingerprint, uint8_t *ret_hash), const struct kv_fingerprint *a,
                         const struct kv_fingerprint *b)
{
    uint8_t of_a[KV_FINGERPRINT_HASH_BYTES], of_b[KV_FINGERPRINT_HASH_BYTES];
    hash(a, of_a);
    hash(b, of_b);
    return memcmp(of_a, of_b, sizeof of_a) == 0;
}

enum kv_fit kv_fingerprint_fit(const struct kv_fingerprint *a, const struct kv_fingerprint *b)
{
    if (is_same_hash(kv_fingerprint_hash, a, b)) { return KV_FIT_SAME; }
    return a->converts && b->converts && is_same_hash(kv_fingerprint_convert_hash, a, b) ? KV_FIT_CONVERTS : KV_FIT_NONE;
}

struct text { char *at; size_t size, used; uint32_t fields; };

__attribute__((format(printf, 2, 3))) static void differs(struct text *text, const char *format, ...)
{
    char field[160];
    va_list args;
    va_start(args, format);
    vsnprintf(field, sizeof field, format, args);
    va_end(args);
    text->fields++;
    if (text->used >= text->size) { return; }
    int wrote = snprintf(text->at + text->used, text->size - text->used, "%s%s", text->used ? "; " : "", field);
    if (wrote > 0) { text->used += (size_t)wrote; }
}

uint32_t kv_fingerprint_diff(const struct kv_fingerprint *ours, const struct kv_fingerprint *theirs, char *out,
                             size_t text_bytes)
{
    struct text text = {.at = out, .size = text_bytes};
    if (text_bytes) { out[0] = '\0'; }
    if (memcmp(ours->model_hash, theirs->model_hash, 32) != 0) {
        differs(&text, "model_hash: ours %02x%02x%02x%02x, theirs %02x%02x%02x%02x", ours->model_hash[0],
                ours->model_hash[1], ours->model_hash[2], ours->model_hash[3], theirs->model_hash[0],
                theirs->model_hash[1], theirs->model_hash[2], theirs->model_hash[3]);
    }
    if (ours->layout.dtype != theirs->layout.dtype) {
        differs(&text, "dtype: ours %s, theirs %s", dtype_name(ours->layout.dtype), dtype_name(theirs->layout.dtype));
    }
    const struct { const char *name; uint32_t ours, theirs; } numbers[] = {
        {"block_tokens", ours->layout.block_tokens, theirs->layout.block_tokens},
        {"layer_count", ours->layout.layer_count, theirs->layout.layer_count},
        {"kv_heads", ours->layout.kv_heads, theirs->layout.kv_heads},
        {"head_dim", ours->layout.head_dim, theirs->layout.head_dim},
        {"order", (uint32_t)ours->layout.order, (uint32_t)theirs->layout.order},
        {"layout_version", ours->layout_version, theirs->layout_version},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (numbers[i].ours != numbers[i].theirs) {
            differs(&text, "%s: ours %u, theirs %u", numbers[i].name, numbers[i].ours, numbers[i].theirs);
        }
    }
    if (strcmp(ours->kernel_set, theirs->kernel_set) != 0) {
        differs(&text, "kernel_set: ours %s, theirs %s", ours->kernel_set, theirs->kernel_set);
    }
    return text.fields;
}
