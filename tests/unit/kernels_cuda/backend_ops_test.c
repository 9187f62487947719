/* Every operation of kernels.h on the emulated device computes what the oracle computes: arguments, addresses, strides
 * and dtypes go through the whole host path. Bounds: one or two roundings to the dtype of what is written; sums of a
 * few hundred f32 products of numbers up to 1 err by less than 1e-4. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/kernels_cuda/backend_testing.h"

static const enum dtype acts[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
#define ACTS (sizeof(acts) / sizeof(acts[0]))

/* Runs a claim for each dtype of activations, over three seeds: other shapes and other orders of the device. */
static void for_all(void (*claim)(struct pair *pair))
{
    for (size_t a = 0; a < ACTS; a++) {
        for (uint64_t seed = 1; seed <= 3; seed++) {
            printf("act=%s seed=%llu\n", dtype_name(acts[a]), (unsigned long long)seed);
            struct pair *pair = pair_create(acts[a], seed == 2, seed);
            claim(pair);
            pair_destroy(pair);
        }
    }
}

static double bound_of(const struct pair *pair) { return 2 * pair_epsilon(pair->act) + 1e-5; }

/* ---- rows ----------------------------------------------------------------------------------- */

static void check_norms(struct pair *p)
{
    const uint32_t rows = pair_random_range(p, 1, 5), heads = pair_random_range(p, 1, 3), dim = pair_random_range(p, 3, 150);
    const size_t stride = (size_t)heads * dim + pair_random_range(p, 0, 9);
    struct pair_values x = pair_values(p, rows * stride, DTYPE_F32, 2), out = pair_values(p, rows * stride, p->act, 1);
    struct pair_values weight = pair_values(p, dim, DTYPE_F16, 1), bias = pair_values(p, dim, DTYPE_F16, 1);
    struct kernels_rmsnorm r = {.rows = rows, .heads = heads, .dim = dim, .x = x.device, .x_stride = stride, .weight = weight.device,
                                .weight_dtype = DTYPE_F16, .eps = 1e-5f, .out = out.device, .out_dtype = p->act, .out_stride = stride};
    kernels_rmsnorm(p->cuda, &r);
    r.x = x.host;
    r.weight = weight.host;
    r.weight_dtype = DTYPE_F32;
    r.out = out.host;
    r.out_dtype = DTYPE_F32;
    kernels_rmsnorm(p->ref, &r);
    pair_compare(p, "rmsnorm", &out, bound_of(p), 1e-5);

    struct kernels_layernorm l = {.rows = rows, .dim = dim, .x = x.device, .x_stride = stride, .weight = weight.device,
                                  .bias = bias.device, .dtype = DTYPE_F16, .eps = 1e-5f, .out = out.device, .out_dtype = p->act,
                                  .out_stride = stride};
    kernels_layernorm(p->cuda, &l);
    l.x = x.host;
    l.weight = weight.host;
    l.bias = bias.host;
    l.dtype = DTYPE_F32;
    l.out = out.host;
    l.out_dtype = DTYPE_F32;
    kernels_layernorm(p->ref, &l);
    pair_compare(p, "layernorm", &out, bound_of(p), 1e-5 + pair_epsilon(p->act));
}
static void norms_are_the_oracles(void **state) { (void)state; for_all(check_norms); }

static void check_elementwise(struct pair *p)
{
    const uint32_t rows = pair_random_range(p, 1, 4), dim = pair_random_range(p, 1, 90);
    const size_t stride = dim + pair_random_range(p, 0, 5);
    struct pair_values a = pair_values(p, rows * stride, p->act, 4), b = pair_values(p, rows * stride, p->act, 4);
    struct pair_values out = pair_values(p, rows * stride, p->act, 1);
    struct kernels_silu_mul s = {.rows = rows, .dim = dim, .dtype = p->act, .gate = a.device, .gate_stride = stride, .up = b.device,
                                 .up_stride = pair_random_range(p, 0, 1) * stride, .out = out.device, .out_stride = stride};
    kernels_silu_mul(p->cuda, &s);
    s.dtype = DTYPE_F32;
    s.gate = a.host;
    s.up = b.host;
    s.out = out.host;
    kernels_silu_mul(p->ref, &s);
    pair_compare(p, "silu_mul", &out, bound_of(p), 1e-5);
    struct kernels_mul m = {.rows = rows, .dim = dim, .dtype = p->act, .a = a.device, .a_stride = stride, .b = b.device,
                            .b_stride = stride, .out = out.device, .out_stride = stride};
    kernels_mul(p->cuda, &m);
    m.dtype = DTYPE_F32;
    m.a = a.host;
    m.b = b.host;
    m.out = out.host;
    kernels_mul(p->ref, &m);
    pair_compare(p, "mul", &out, bound_of(p), 1e-5);
    for (int form = 0; form < 2; form++) {
        struct kernels_gelu g = {.form = form == 0 ? KERNELS_GELU_ERF : KERNELS_GELU_TANH, .rows = rows, .dim = dim, .dtype = p->act,
                                 .x = a.device, .x_stride = stride, .out = out.device, .out_stride = stride};
        kernels_gelu(p->cuda, &g);
        g.dtype = DTYPE_F32;
        g.x = a.host;
        g.out = out.host;
        kernels_gelu(p->ref, &g);
        pair_compare(p, form == 0 ? "gelu erf" : "gelu tanh", &out, bound_of(p), 1e-5);
    }
}
static void elementwise_operations_are_the_oracles(void **state) { (void)state; for_all(check_elementwise); }

/* In one launch at few rows where results need not be deterministic, else in parts. Gate and up err by a rounding to the dtype
 * and the sums', whose terms are below 1/2: `e`; silu's slope is below 1.1. */
static void check_gemm_silu(struct pair *p)
{
    for (uint32_t rows = 1; rows <= 6; rows++) {
        const uint32_t n_in = pair_random_range(p, 1, 90), n_out = pair_random_range(p, 1, 70);
        const size_t x_stride = (n_in + 7) / 8 * 8, stride = n_out + pair_random_range(p, 0, 5);
        const bool has_bias = pair_random_range(p, 0, 1) != 0;
        struct kernels_matrix ref_weight[2], cuda_weight[2];
        struct pair_values x = pair_values(p, rows * x_stride, p->act, 0.5f), bias = pair_values(p, n_out, p->act, 1);
        struct pair_values gate = pair_values(p, rows * stride, p->act, 0), up = pair_values(p, rows * stride, p->act, 0);
        struct pair_values out = pair_values(p, rows * stride, p->act, 1);
        for (int i = 0; i < 2; i++) { pair_matrix(p, n_out, n_in, p->act, &ref_weight[i], &cuda_weight[i]); }
        for (int side = 0; side < 2; side++) {
            const bool on_device = side == 0;
            const enum dtype act = on_device ? p->act : DTYPE_F32;
            struct kernels_gemm g = {.rows = rows, .weight = on_device ? &cuda_weight[0] : &ref_weight[0], .x = on_device ? x.device : x.host,
                                     .x_dtype = act, .x_stride = x_stride, .bias_dtype = act, .out = on_device ? gate.device : gate.host,
                                     .out_dtype = act, .out_stride = stride};
            if (has_bias) { g.bias = on_device ? bias.device : bias.host; }
            struct kernels_gemm u = g;
            u.weight = on_device ? &cuda_weight[1] : &ref_weight[1];
            u.out = on_device ? up.device : up.host;
            const uint64_t launches = emulated_device_calls(p->driver, EMULATED_LAUNCH);
            kernels_gemm_silu(on_device ? p->cuda : p->ref,
                              &(struct kernels_gemm_silu){.gate = g, .up = u,
                                                          .silu = {.rows = rows, .dim = n_out, .dtype = act, .gate = g.out, .gate_stride = stride,
                                                                   .up = u.out, .up_stride = stride,
                                                                   .out = on_device ? out.device : out.host, .out_stride = stride}});
            if (on_device && rows <= 4 && strstr(kernels_set_name(p->cuda), "-fast-") != NULL) {
                assert_int_equal(emulated_device_calls(p->driver, EMULATED_LAUNCH) - launches, 1);
            }
        }
        double most_gate = 0, most_up = 0;
        for (size_t i = 0; i < gate.count; i++) {
            most_gate = fmax(most_gate, fabs((double)gate.host[i]));
            most_up = fmax(most_up, fabs((double)up.host[i]));
        }
        const double e = pair_epsilon(p->act) + 2 * (n_in + 4) * 0x1p-24 * n_in;
        pair_compare(p, "gemm_silu", &out, pair_epsilon(p->act), 2.1 * e * (most_gate * most_up + most_gate + most_up) + 1e-5);
    }
}
static void gemm_silu_is_the_oracles(void **state) { (void)state; for_all(check_gemm_silu); }

static void check_embed_and_gather(struct pair *p)
{
    const uint32_t rows = pair_random_range(p, 1, 6), vocab = pair_random_range(p, 2, 40), dim = pair_random_range(p, 1, 70);
    struct kernels_matrix ref_table, cuda_table;
    pair_matrix(p, vocab, dim, p->act, &ref_table, &cuda_table);
    struct pair_values positions = pair_values(p, 9 * (size_t)dim, DTYPE_BF16, 1), x = pair_values(p, rows * (size_t)dim, DTYPE_F32, 1);
    uint32_t *ids = pair_exchange(p, rows * sizeof(*ids)), *at = pair_exchange(p, rows * sizeof(*at));
    uint32_t *from = pair_exchange(p, rows * sizeof(*from));
    for (uint32_t r = 0; r < rows; r++) {
        ids[r] = pair_random_range(p, 0, vocab - 1);
        at[r] = pair_random_range(p, 0, 8);
        from[r] = pair_random_range(p, 0, rows - 1);
    }
    pair_send(p);
    struct kernels_embed e = {.rows = rows, .table = &cuda_table, .ids = ids, .position_table = positions.device, .position_count = 9,
                              .position_dtype = DTYPE_BF16, .positions = at, .out = x.device, .out_stride = dim};
    kernels_embed(p->cuda, &e);
    e.table = &ref_table;
    e.position_table = positions.host;
    e.position_dtype = DTYPE_F32;
    e.out = x.host;
    kernels_embed(p->ref, &e);
    pair_compare(p, "embed", &x, 1e-6, 1e-6);
    struct pair_values kept = pair_values(p, rows * ((size_t)dim + 3), DTYPE_F32, 1);
    struct kernels_gather_rows g = {.rows = rows, .dim = dim, .x = x.device, .x_rows = rows, .x_stride = dim, .from = from,
                                    .out = kept.device, .out_stride = (size_t)dim + 3};
    kernels_gather_rows(p->cuda, &g);
    g.x = x.host;
    g.out = kept.host;
    kernels_gather_rows(p->ref, &g);
    pair_compare(p, "gather_rows", &kept, 1e-6, 1e-6);
    e.table = &cuda_table; /* without positions their array is not looked at */
    e.position_table = NULL;
    e.positions = NULL;
    e.out = x.device;
    kernels_embed(p->cuda, &e);
    e.table = &ref_table;
    e.out = x.host;
    kernels_embed(p->ref, &e);
    pair_compare(p, "embed without positions", &x, 0, 0);
}
static void embed_and_gather_are_the_oracles(void **state) { (void)state; for_all(check_embed_and_gather); }

/* ---- paged KV ------------------------------------------------------------------------------- */

struct pools {
    struct kernels_kv ref, cuda;
    size_t bytes;
};

static struct pools make_pools(struct pair *p, enum dtype kv_dtype, uint32_t kv_heads, uint32_t head_dim, uint32_t blocks)
{
    struct pools pools = {.ref = {.layout = {.block_tokens = 16, .layer_count = 2, .kv_heads = kv_heads, .head_dim = head_dim,
                                             .dtype = kv_dtype, .order = KV_ORDER_ROWS},
                                  .block_count = blocks, .layer = 1}};
    pools.bytes = blocks * kv_layout_block_bytes(&pools.ref.layout);
    pools.cuda = pools.ref;
    pools.ref.pool = pair_host(p, pools.bytes);
    pools.cuda.pool = pair_device(p, pools.bytes); /* zeroed, as the other */
    return pools;
}

static void compare_pools(struct pair *p, const struct pools *pools)
{
    uint8_t *got = pair_host(p, pools->bytes);
    kernels_download(p->cuda, got, pools->cuda.pool, pools->bytes);
    assert_false(failed(kernels_sync(p->cuda)));
    assert_memory_equal(got, pools->ref.pool, pools->bytes);
}

static const enum dtype kv_dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_INT8, DTYPE_FP8_E4M3};

/* A whole layer: norms and rotation of q and k, K and V stored, attention over contexts of several blocks; one
 * sequence of one row, one of several, one of none. */
static void check_layer(struct pair *p, enum dtype kv_dtype, uint32_t head_dim, bool with_norm)
{
    const uint32_t kv_heads = 2, q_heads = 4, blocks = 12, rows = 1 + 5, contexts[3] = {37, 5, 0};
    const size_t q_width = (size_t)q_heads * head_dim, kv_width = (size_t)kv_heads * head_dim, stride = q_width + 2 * kv_width;
    struct pools pools = make_pools(p, kv_dtype, kv_heads, head_dim, blocks);
    struct kernels_attention_sequence *sequences = pair_exchange(p, 3 * sizeof(*sequences));
    uint32_t *tables = pair_exchange(p, 12 * sizeof(*tables)), *positions = pair_exchange(p, 64 * sizeof(*positions));
    struct kernels_kv_slot *slots = pair_exchange(p, 64 * sizeof(*slots));
    for (uint32_t i = 0; i < blocks; i++) { tables[i] = (i * 5 + 3) % blocks; }
    /* The past of the first sequence, by kernels_kv_write; its present has slots of its own. */
    struct pair_values past = pair_values(p, 64 * 2 * kv_width, p->act, 1);
    for (uint32_t t = 0; t < 64; t++) {
        slots[t] = (struct kernels_kv_slot){.block = t < contexts[0] - 1 ? tables[t / 16] : KERNELS_SLOT_NONE, .slot = t % 16};
    }
    pair_send(p);
    struct kernels_kv_write w = {.kv = pools.cuda, .rows = 64, .dtype = p->act, .k = past.device, .k_stride = 2 * kv_width,
                                 .v = (uint8_t *)past.device + kv_width * dtype_bytes(p->act), .v_stride = 2 * kv_width, .slots = slots};
    kernels_kv_write(p->cuda, &w);
    assert_false(failed(kernels_sync(p->cuda)));
    w.kv = pools.ref;
    w.dtype = DTYPE_F32;
    w.k = past.host;
    w.v = past.host + kv_width;
    kernels_kv_write(p->ref, &w);
    compare_pools(p, &pools);

    sequences[0] = (struct kernels_attention_sequence){.row_first = 0, .row_count = 1, .position_first = contexts[0] - 1, .blocks = tables};
    sequences[1] = (struct kernels_attention_sequence){.row_first = 1, .row_count = 5, .position_first = 0, .blocks = tables + 6};
    sequences[2] = (struct kernels_attention_sequence){.row_first = 6, .row_count = 0, .blocks = tables};
    for (uint32_t r = 0; r < rows; r++) {
        positions[r] = r == 0 ? contexts[0] - 1 : r - 1;
        slots[r] = (struct kernels_kv_slot){.block = tables[r == 0 ? (contexts[0] - 1) / 16 : 6], .slot = positions[r] % 16};
    }
    pair_send(p);
    struct pair_values qkv = pair_values(p, rows * stride, p->act, 1), out = pair_values(p, rows * q_width, p->act, 0);
    struct pair_values cos = pair_values(p, 64 * (size_t)(head_dim / 2), DTYPE_F32, 1), sin = pair_values(p, 64 * (size_t)(head_dim / 2), DTYPE_F32, 1);
    struct pair_values norm = pair_values(p, head_dim, DTYPE_BF16, 1);
    for (int side = 0; side < 2; side++) {
        const bool on_device = side == 0;
        struct kernels *kernels = on_device ? p->cuda : p->ref;
        const size_t bytes = on_device ? dtype_bytes(p->act) : 4;
        uint8_t *base = on_device ? qkv.device : (void *)qkv.host;
        const enum dtype act = on_device ? p->act : DTYPE_F32;
        struct kernels_rope q = {.rows = rows, .heads = q_heads, .head_dim = head_dim, .rotary_dim = head_dim, .x = base, .dtype = act,
                                 .x_stride = stride, .cos = on_device ? cos.device : cos.host, .sin = on_device ? sin.device : sin.host,
                                 .positions = positions, .position_count = 64,
                                 .norm = !with_norm ? NULL : on_device ? norm.device : (void *)norm.host,
                                 .norm_dtype = on_device ? DTYPE_BF16 : DTYPE_F32, .norm_eps = 1e-5f};
        struct kernels_rope k = q;
        k.heads = kv_heads;
        k.x = base + q_width * bytes;
        struct kernels_kv_write store = {.kv = on_device ? pools.cuda : pools.ref, .rows = rows, .dtype = act, .k = k.x, .k_stride = stride,
                                         .v = base + (q_width + kv_width) * bytes, .v_stride = stride, .slots = slots};
        kernels_rope_kv(kernels, &(struct kernels_rope_kv){.k = k, .write = store, .q = q});
        kernels_attention(kernels, &(struct kernels_attention){
                                       .kv = store.kv, .q_heads = q_heads, .scale = 0.3f, .window = with_norm ? 20 : 0, .dtype = act,
                                       .q = base, .q_stride = stride, .out = on_device ? out.device : (void *)out.host,
                                       .out_stride = q_width, .sequences = sequences, .sequence_count = 3, .rows = rows,
                                       .row_count_max = 5, .context_max = 64});
        kernels_copy_block(kernels, &(struct kernels_copy_block){.pool = store.kv.pool, .layout = store.kv.layout, .block_count = blocks,
                                                                 .from = tables[0], .to = tables[11]});
    }
    /* q, k and weights of v are rounded to the activations' dtype, K and V to the pool's: a code of int8 or fp8 may be the
     * neighbour of the oracle's where the rotated k was rounded first. */
    const double code = kv_dtype == DTYPE_FP8_E4M3 ? 0.07 : kv_dtype == DTYPE_INT8 ? 0.02 : kv_dtype == DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
    pair_compare(p, "attention", &out, 8 * pair_epsilon(p->act), 8 * pair_epsilon(p->act) + (with_norm ? 4 : 2) * code + 1e-5);
    uint8_t *moved = pair_host(p, kv_layout_block_bytes(&pools.cuda.layout)), *from = pair_host(p, kv_layout_block_bytes(&pools.cuda.layout));
    const size_t block = kv_layout_block_bytes(&pools.cuda.layout);
    kernels_download(p->cuda, moved, (uint8_t *)pools.cuda.pool + tables[11] * block, block);
    kernels_download(p->cuda, from, (uint8_t *)pools.cuda.pool + tables[0] * block, block);
    assert_false(failed(kernels_sync(p->cuda)));
    assert_memory_equal(moved, from, block);
}

static void check_layers(struct pair *p)
{
    for (size_t i = 0; i < sizeof(kv_dtypes) / sizeof(kv_dtypes[0]); i++) {
        p->exchange_used = 0;
        check_layer(p, kv_dtypes[i], i % 2 == 0 ? 64 : 32, i % 2 == 1);
    }
}
static void a_layer_is_the_oracles(void **state) { (void)state; for_all(check_layers); }

/* Only k and v, without rotation: what the last layer asks of rows whose q nobody wants. */
static void check_store_alone(struct pair *p)
{
    const uint32_t rows = 3, head_dim = 16;
    struct pools pools = make_pools(p, p->act, 1, head_dim, 2);
    struct kernels_kv_slot *slots = pair_exchange(p, rows * sizeof(*slots));
    for (uint32_t r = 0; r < rows; r++) { slots[r] = (struct kernels_kv_slot){.block = r == 1 ? KERNELS_SLOT_NONE : r / 2, .slot = 3 * r}; }
    pair_send(p);
    struct pair_values kv = pair_values(p, rows * 2 * head_dim, p->act, 1);
    for (int side = 0; side < 2; side++) {
        const bool on_device = side == 0;
        const enum dtype act = on_device ? p->act : DTYPE_F32;
        uint8_t *base = on_device ? kv.device : (void *)kv.host;
        struct kernels_rope k = {.rows = rows, .heads = 1, .head_dim = head_dim, .x = base, .dtype = act, .x_stride = 2 * head_dim};
        struct kernels_rope q = {.head_dim = head_dim, .heads = 1, .dtype = act};
        struct kernels_kv_write w = {.kv = on_device ? pools.cuda : pools.ref, .rows = rows, .dtype = act, .k = base, .k_stride = 2 * head_dim,
                                     .v = base + head_dim * (on_device ? dtype_bytes(act) : 4), .v_stride = 2 * head_dim, .slots = slots};
        kernels_rope_kv(on_device ? p->cuda : p->ref, &(struct kernels_rope_kv){.k = k, .write = w, .q = q});
    }
    compare_pools(p, &pools);
}
static void keys_and_values_can_be_stored_alone(void **state) { (void)state; for_all(check_store_alone); }

static void check_rope(struct pair *p)
{
    const uint32_t rows = 3, heads = 2, head_dim = 24;
    uint32_t *positions = pair_exchange(p, rows * sizeof(*positions));
    struct pair_values x = pair_values(p, rows * heads * head_dim, p->act, 1), norm = pair_values(p, head_dim, DTYPE_F32, 1);
    /* The angles may lie in the exchange as well. */
    float *cos = pair_exchange(p, 5 * 8 * sizeof(*cos)), *sin = pair_exchange(p, 5 * 8 * sizeof(*sin));
    for (uint32_t i = 0; i < 40; i++) {
        cos[i] = pair_random_float(p);
        sin[i] = pair_random_float(p);
    }
    for (uint32_t r = 0; r < rows; r++) { positions[r] = r + 2; }
    pair_send(p);
    struct kernels_rope a = {.rows = rows, .heads = heads, .head_dim = head_dim, .rotary_dim = 16, .x = x.device, .dtype = p->act,
                             .x_stride = heads * head_dim, .cos = cos, .sin = sin, .positions = positions, .position_count = 5,
                             .norm = norm.device, .norm_dtype = DTYPE_F32, .norm_eps = 1e-5f};
    kernels_rope(p->cuda, &a);
    a.x = x.host;
    a.dtype = DTYPE_F32;
    a.norm = norm.host;
    kernels_rope(p->ref, &a);
    pair_compare(p, "rope", &x, bound_of(p), 4 * pair_epsilon(p->act) + 1e-5);
}
static void rope_is_the_oracles(void **state) { (void)state; for_all(check_rope); }

/* ---- sampling ------------------------------------------------------------------------------- */

/* The kernels have their own twins; here: addresses, the scratch that grows, and the way back. */
static void check_sample(struct pair *p)
{
    for (uint32_t round = 0; round < 2; round++) {
        const uint32_t rows = round == 0 ? 3 : 20, vocab = round == 0 ? 50 : 9000;
        p->exchange_used = 0;
        struct kernels_sample_row *params = pair_exchange(p, rows * sizeof(*params));
        struct kernels_sample_adjust *adjusts = pair_exchange(p, rows * sizeof(*adjusts));
        struct kernels_sample_result *results = pair_exchange(p, rows * sizeof(*results));
        struct pair_values logits = pair_values(p, rows * (size_t)vocab, DTYPE_F32, 1);
        uint32_t best[20];
        for (uint32_t r = 0; r < rows; r++) {
            uint32_t banned = pair_random_range(p, 0, vocab - 1);
            best[r] = pair_random_range(p, 0, vocab - 1);
            if (banned == best[r]) { best[r] = (banned + 1) % vocab; }
            logits.host[r * vocab + best[r]] = 5;
            logits.host[r * vocab + banned] = 9;
            params[r] = (struct kernels_sample_row){.adjust_first = r, .adjust_count = 1, .top_p = 1, .repetition = 1};
            adjusts[r] = (struct kernels_sample_adjust){.token = banned, .is_masked = 1};
            results[r] = (struct kernels_sample_result){.token = 77777, .fault = 9};
        }
        logits.host[vocab + 1] = __builtin_nanf("");
        pair_upload(p, &logits);
        pair_send(p);
        kernels_sample(p->cuda, &(struct kernels_sample){.rows = rows, .vocab = vocab, .logits = logits.device, .stride = vocab,
                                                         .params = params, .adjusts = adjusts, .results = results});
        assert_false(failed(kernels_sync(p->cuda)));
        for (uint32_t r = 0; r < rows; r++) {
            assert_int_equal(results[r].fault, r == 1 ? KERNELS_SAMPLE_NAN : KERNELS_SAMPLE_OK);
            if (r != 1) { assert_int_equal(results[r].token, best[r]); }
        }
        assert_int_equal(results[1].fault_at, 1);
    }
}
static void sampled_tokens_come_back_with_sync(void **state) { (void)state; for_all(check_sample); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_are_the_oracles),
        cmocka_unit_test(elementwise_operations_are_the_oracles),
        cmocka_unit_test(gemm_silu_is_the_oracles),
        cmocka_unit_test(embed_and_gather_are_the_oracles),
        cmocka_unit_test(rope_is_the_oracles),
        cmocka_unit_test(a_layer_is_the_oracles),
        cmocka_unit_test(keys_and_values_can_be_stored_alone),
        cmocka_unit_test(sampled_tokens_come_back_with_sync),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
