/* attention_sm90: the prefill kernel for Hopper: its warpgroup products reach twice the rate of what runs on every chip.
 * Flow:    attention_plan (where the backend has found it right on this chip) -> launch -> [attention_sm90]
 * Thread:  two warpgroups of 64 packed rows each share the steps, of 128 tokens, that all 256 threads load.
 * Memory:  shared: the queries, and a ring of three steps of K and V: one is loaded while two are used.
 *
 * The second warpgroup multiplies weights and V one step later than the first. So while one works on weights the other
 * keeps the matrix units busy:
 *     first    scores j    weights j    sums j
 *     second   sums j-1    scores j     weights j
 * Not for deterministic results: the sums of these products are formed in another order than those of decode.
 * For K and V in the activations' dtype, 16-byte aligned q. As everywhere, a row's hidden tokens weigh 0, and where one
 * of those is no number in V, its step is summed by the slow path that looks at what each row sees. */
#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/attention_sm90_device.cuh"

#if HAS_WARPGROUP_PRODUCTS

template <int D> struct sm90_shared {
    static constexpr uint32_t panel = CUDA_ATTENTION_SM90_ROWS * PANEL_ROW_BYTES; /* 64 values of 128 rows or tokens */
    static constexpr uint32_t values = D / 64 * panel;                            /* Q, or K or V of a step */
    static constexpr uint32_t stage = 2 * values;
    static constexpr uint32_t stages = 3;
    static constexpr uint32_t chunks = D / 8; /* of 16 bytes, in a row */
    static constexpr uint32_t pass = CUDA_ATTENTION_SM90_THREADS / chunks; /* rows that the block loads at once */
    static constexpr uint32_t turns = CUDA_ATTENTION_SM90_STEP / pass;
};

/* From the start of Q, K or V to chunk `chunk` of a row. */
template <int D> DEVICE_FN uint32_t sm90_offset(uint32_t row, uint32_t chunk)
{
    return chunk / 8 * sm90_shared<D>::panel + panel_offset(row, chunk % 8);
}

template <int D> DEVICE_FN void sm90_look_ahead(const cuda_attention_args &a, const prefill_walk &walk, uint32_t *ahead, uint32_t step)
{
    typedef sm90_shared<D> lies;
#pragma unroll
    for (uint32_t i = 0; i < lies::turns; i++) {
        const uint32_t row = threadIdx.x / lies::chunks + i * lies::pass;
        ahead[i] = block_of_group(a, walk.table, (step * CUDA_ATTENTION_SM90_STEP + row) / 16, walk.first, walk.last);
    }
}

template <int D>
DEVICE_FN void sm90_load(const cuda_attention_args &a, const prefill_walk &walk, const uint32_t *ahead, uint32_t step, unsigned char *stage)
{
    typedef sm90_shared<D> lies;
    const uint32_t chunk = threadIdx.x % lies::chunks, row_bytes = a.head_dim * 2;
#pragma unroll
    for (uint32_t i = 0; i < lies::turns; i++) {
        const uint32_t row = threadIdx.x / lies::chunks + i * lies::pass, token = step * CUDA_ATTENTION_SM90_STEP + row;
        const bool valid = token >= walk.first && token <= walk.last && chunk * 16 < row_bytes;
        const unsigned char *from = group_at(a, ahead[i], token / 16, walk.kv_head, 2) + token % 16 * row_bytes + chunk * 16;
        copy_async16(stage + sm90_offset<D>(row, chunk), from, valid);
        copy_async16(stage + lies::values + sm90_offset<D>(row, chunk), from + a.v_offset, valid);
    }
}

/* The tile's rows of q; those that it does not have are zeros. */
template <int D>
DEVICE_FN void sm90_load_queries(const cuda_attention_args &a, const cuda_attention_sequence &sequence, uint32_t kv_head,
                                 uint32_t packed_first, unsigned char *to)
{
    typedef sm90_shared<D> lies;
    const uint32_t chunk = threadIdx.x % lies::chunks;
    for (uint32_t row = threadIdx.x / lies::chunks; row < CUDA_ATTENTION_SM90_ROWS; row += lies::pass) {
        const uint32_t packed = packed_first + row, in_sequence = packed / a.group;
        const bool valid = packed < sequence.row_count * a.group && chunk * 8 < a.head_dim;
        const uint16_t *from = (const uint16_t *)a.q;
        if (valid) {
            from += (sequence.row_first + in_sequence) * a.q_stride
                  + (uint64_t)(kv_head * a.group + packed % a.group) * a.head_dim + chunk * 8;
        }
        copy_async16(to + sm90_offset<D>(row, chunk), from, valid);
    }
}

/* Warpgroup: starts q . K of a step. q, keys: shared addresses, q of the warpgroup's first row. */
template <class ACT, int D> DEVICE_FN void sm90_start_scores(float (*s)[4], uint32_t q, uint32_t keys)
{
    typedef sm90_shared<D> lies;
#pragma unroll
    for (uint32_t i = 0; i < D / 16; i++) {
        const uint32_t at = i / 4 * lies::panel + i % 4 * 32;
        products<ACT, CUDA_ATTENTION_SM90_STEP>::shared(s, panel_descriptor(q + at, lies::panel), panel_descriptor(keys + at, lies::panel), i != 0);
    }
}

/* Warpgroup: starts o += weights . V. */
template <class ACT, int D> DEVICE_FN void sm90_start_sums(float (*o)[4], const uint32_t (*weights)[4], uint32_t values)
{
#pragma unroll
    for (uint32_t u = 0; u < CUDA_ATTENTION_SM90_STEP / 16; u++) {
        products<ACT, D>::held(o, weights[u], panel_descriptor(values + u * 16 * PANEL_ROW_BYTES, sm90_shared<D>::panel));
    }
}

/* Warpgroup: the two of them to their ends. Both begin and end in one piece of code: the compiler would wait after every
 * product where another piece could follow while one goes on. */
template <class ACT, int D> DEVICE_FN void sm90_scores(float (*s)[4], uint32_t q, uint32_t keys)
{
    product_fence();
    sm90_start_scores<ACT, D>(s, q, keys);
    group_commit();
    group_wait();
    settle<CUDA_ATTENTION_SM90_STEP / 8>(s);
}

template <class ACT, int D> DEVICE_FN void sm90_sums(float (*o)[4], uint32_t (*weights)[4], const unsigned char *values)
{
    product_fence();
    sm90_start_sums<ACT, D>(o, weights, shared_address(values));
    group_commit();
    group_wait();
    settle<D / 8>(o);
    settle<CUDA_ATTENTION_SM90_STEP / 16>(weights);
}

template <int D> struct place_in_panels {
    DEVICE_FN uint32_t of(uint32_t token, uint32_t chunk) { return sm90_offset<D>(token, chunk); }
};
/* Warp: the slow path. */
template <class ACT, int D>
DEVICE_FN void sm90_sums_by_rows(float (*o)[4], const uint32_t (*weights)[4], const unsigned char *values, const row_view &view, uint32_t t0)
{
    sum_by_rows<ACT, place_in_panels<D>, D, CUDA_ATTENTION_SM90_STEP / 16>(o, weights, values, view, t0);
}

template <class ACT, int D> DEVICE_FN void attention_sm90(const cuda_attention_args &a)
{
    typedef sm90_shared<D> lies;
    typedef prefill_tiles<CUDA_ATTENTION_SM90_ROWS> tiles;
    const uint32_t tile_count = units_of_all<tiles>(a), number = blockIdx.x / a.kv_heads;
    if (number >= tile_count) { return; }
    const found_unit found = find_unit<tiles>(a, tile_count - 1 - number);
    const cuda_attention_sequence sequence = a.sequences[found.sequence];
    const uint32_t packed_first = (tile_count - 1 - number - found.before) * CUDA_ATTENTION_SM90_ROWS;
    const uint32_t packed_count = sequence.row_count * a.group, packed_end = packed_first + CUDA_ATTENTION_SM90_ROWS;
    prefill_walk walk;
    walk.table = table_of(a, sequence);
    walk.kv_head = blockIdx.x % a.kv_heads;
    walk.first = view_start(a, sequence.position_first + packed_first / a.group);
    walk.last = sequence.position_first + ((packed_end < packed_count ? packed_end : packed_count) - 1) / a.group;
    walk.step_first = walk.first / CUDA_ATTENTION_SM90_STEP;
    walk.step_last = walk.last / CUDA_ATTENTION_SM90_STEP;
    const uint32_t warpgroup = shuffle(threadIdx.x / 128, 0); /* so the compiler knows that a warp goes one way */
    const prefill_rows rows = rows_of_lane(a, sequence, walk.kv_head, packed_first + warp_id() * 16);

    /* Panels start at multiples of 1024 bytes. */
    unsigned char *const queries = device_shared() + ((0u - shared_address(device_shared())) & 1023u);
    unsigned char *const ring = queries + lies::values;
    const uint32_t q = shared_address(queries) + warpgroup * 64 * PANEL_ROW_BYTES;

    uint32_t ahead[lies::turns];
    sm90_look_ahead<D>(a, walk, ahead, walk.step_first);
    sm90_load_queries<D>(a, sequence, walk.kv_head, packed_first, queries);
    sm90_load<D>(a, walk, ahead, walk.step_first, ring);
    copy_async_commit();
    sm90_look_ahead<D>(a, walk, ahead, walk.step_first + 1);

    row_sums<D> st;
    clear_sums<D>(st);
    uint32_t weights[CUDA_ATTENTION_SM90_STEP / 16][4] = {{0}};
    uint32_t slot = 0, slot_before = 0; /* of the ring */
    bool wild_before = false;           /* of the second warpgroup: how the step before is to be summed */
    for (uint32_t step = walk.step_first; step <= walk.step_last; step++) {
        copy_async_wait<0>();
        share_fence();
        block_sync(); /* the step is here, and nobody uses the one of two steps ago any more */
        const uint32_t slot_after = slot + 1 < lies::stages ? slot + 1 : 0;
        if (step < walk.step_last) {
            sm90_load<D>(a, walk, ahead, step + 1, ring + slot_after * lies::stage);
            sm90_look_ahead<D>(a, walk, ahead, step + 2);
        }
        copy_async_commit();

        const unsigned char *const keys = ring + slot * lies::stage, *const values = keys + lies::values;
        const unsigned char *const values_before = ring + slot_before * lies::stage + lies::values;
        const uint32_t t0 = step * CUDA_ATTENTION_SM90_STEP;
        const bool sums_before = warpgroup == 1 && step != walk.step_first;
        if (sums_before) {
            if (wild_before) {
                sm90_sums_by_rows<ACT, D>(st.o, weights, values_before, rows.view, t0 - CUDA_ATTENTION_SM90_STEP);
            } else {
                sm90_sums<ACT, D>(st.o, weights, values_before);
            }
        }
        float s[CUDA_ATTENTION_SM90_STEP / 8][4];
        sm90_scores<ACT, D>(s, q, shared_address(keys));

        const bool whole = t0 >= rows.whole_first && t0 + CUDA_ATTENTION_SM90_STEP - 1 <= rows.whole_last;
        weigh_step<D, CUDA_ATTENTION_SM90_STEP / 8>(s, st, rows.view, whole, t0, a.scale_log2);
#pragma unroll
        for (uint32_t u = 0; u < CUDA_ATTENTION_SM90_STEP / 16; u++) { pack_weights<kv_plain<ACT>>(weights[u], s + 2 * u, nullptr); }
        /* The same for all of a warpgroup, which multiplies as one. */
        const uint32_t group_first = packed_first + warpgroup * 64, group_last = group_first + 63;
        const bool group_whole = t0 >= view_start(a, sequence.position_first + group_last / a.group)
                              && t0 + CUDA_ATTENTION_SM90_STEP - 1 <= sequence.position_first + group_first / a.group;
        const bool wild = !group_whole && has_wild_values<kv_plain<ACT>>(values, lies::values);
        if (warpgroup == 0) {
            if (wild) {
                sm90_sums_by_rows<ACT, D>(st.o, weights, values, rows.view, t0);
            } else {
                sm90_sums<ACT, D>(st.o, weights, values);
            }
        }
        wild_before = wild;
        slot_before = slot;
        slot = slot_after;
    }
    if (warpgroup == 1) {
        const unsigned char *const values = ring + slot_before * lies::stage + lies::values;
        if (wild_before) {
            sm90_sums_by_rows<ACT, D>(st.o, weights, values, rows.view, walk.step_last * CUDA_ATTENTION_SM90_STEP);
        } else {
            sm90_sums<ACT, D>(st.o, weights, values);
        }
    }
    gather_sums<D>(st);
    store_rows<kv_plain<ACT>, D>(rows.out, st, a.head_dim);
}

#define ATTENTION_SM90_BODY(ACT, D) attention_sm90<ACT, D>(a)
#else
#define ATTENTION_SM90_BODY(ACT, D) (void)a
#endif

#define ATTENTION_SM90_KERNEL(name, ACT, D)                                                               \
    extern "C" __global__ void __launch_bounds__(CUDA_ATTENTION_SM90_THREADS)                              \
        cuda_attention_sm90_##name##_##D(const __grid_constant__ struct cuda_attention_args a)             \
    {                                                                                                      \
        launch_begin();                                                                                    \
        ATTENTION_SM90_BODY(ACT, D);                                                                       \
    }
ATTENTION_SM90_KERNEL(bf16, as_bf16, 64)
ATTENTION_SM90_KERNEL(bf16, as_bf16, 128)
ATTENTION_SM90_KERNEL(f16, as_f16, 64)
ATTENTION_SM90_KERNEL(f16, as_f16, 128)
