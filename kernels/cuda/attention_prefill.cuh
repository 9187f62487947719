/* attention_prefill: rows of sequences with more than one row: chunks of prompts.
 * Flow:    attention_plan -> launch -> [attention_prefill] -> attention_math
 * Thread:  4 warps of 16 rows each; a block takes 64 packed rows (token x q head of one kv head) of one sequence.
 * Memory:  a ring of a.stages steps of K and V in shared memory; where results are deterministic, the sums of the
 *          segments before, too, each lane's own.
 *
 * Blocks are numbered so that the last rows of the last sequence come first: they walk the longest contexts, and what
 * runs at the end is short. Neighbours in the grid differ in the kv head, so that blocks that run at once do not all
 * want the same lines of L2. */
#ifndef BATON_KERNELS_CUDA_ATTENTION_PREFILL_CUH
#define BATON_KERNELS_CUDA_ATTENTION_PREFILL_CUH

#include "kernels/cuda/attention_find.cuh"
#include "kernels/cuda/attention_math.cuh"

/* ---- shared memory ------------------------------------------------------------------------- */

template <class KV, int D> struct prefill_shared {
    static constexpr uint32_t units = CUDA_ATTENTION_STEP / CUDA_ATTENTION_GROUP;
    static constexpr uint32_t values = units * unit_of<KV, D>::bytes; /* of K or V of a step */
    static constexpr uint32_t stage = CUDA_ATTENTION_STAGE_BYTES(D, KV::bytes);
    static constexpr uint32_t queries = 4 * query_rows<D>::shared_bytes;
};

/* ---- tiles --------------------------------------------------------------------------------- */

template <uint32_t ROWS> struct prefill_tiles {
    DEVICE_FN uint32_t of(const cuda_attention_args &a, const cuda_attention_sequence &s)
    {
        return s.row_count < 2 ? 0 : (s.row_count * a.group + ROWS - 1) / ROWS;
    }
};

/* What a block walks. */
struct prefill_walk {
    const uint32_t *table;
    uint32_t kv_head;
    uint32_t first, last;           /* tokens that some row of the tile sees */
    uint32_t step_first, step_last; /* steps of 64 tokens with some of those */
};

/* Two rows of a lane, and what all 16 rows of its warp see. */
struct prefill_rows {
    const uint16_t *q[2]; /* NULL: the tile has no such row */
    uint16_t *out[2];
    row_view view;
    uint32_t whole_first, whole_last; /* a row that is none does not count: its weights do not matter */
};

/* Warp: of packed rows first .. first+15 of a sequence. */
DEVICE_FN prefill_rows rows_of_lane(const cuda_attention_args &a, const cuda_attention_sequence &sequence, uint32_t kv_head,
                                    uint32_t first)
{
    prefill_rows rows;
    rows.whole_first = 0;
    rows.whole_last = 0xffffffffu;
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        const uint32_t packed = first + r * 8 + lane_id() / 4;
        rows.q[r] = nullptr;
        rows.out[r] = nullptr;
        rows.view.from[r] = 1;
        rows.view.to[r] = 0;
        if (packed < sequence.row_count * a.group) {
            const uint32_t in_sequence = packed / a.group, row = sequence.row_first + in_sequence;
            const uint32_t head = kv_head * a.group + packed % a.group;
            rows.q[r] = (const uint16_t *)a.q + row * a.q_stride + (uint64_t)head * a.head_dim;
            rows.out[r] = (uint16_t *)a.out + row * a.out_stride + (uint64_t)head * a.head_dim;
            const uint32_t to = sequence.position_first + in_sequence, from = view_start(a, to);
            rows.view.to[r] = to;
            rows.view.from[r] = from;
            rows.whole_first = from > rows.whole_first ? from : rows.whole_first;
            rows.whole_last = to < rows.whole_last ? to : rows.whole_last;
        }
    }
    for (uint32_t mask = 4; mask < 32; mask *= 2) {
        const uint32_t from = shuffle_xor(rows.whole_first, mask), to = shuffle_xor(rows.whole_last, mask);
        rows.whole_first = from > rows.whole_first ? from : rows.whole_first;
        rows.whole_last = to < rows.whole_last ? to : rows.whole_last;
    }
    return rows;
}

/* This thread's share of a step: rows `row`, row + pass, .. of the 64, one 16-byte chunk of each. */
template <class KV, int D> struct prefill_loader {
    static constexpr uint32_t chunks = unit_of<KV, D>::chunks;
    static constexpr uint32_t pass = CUDA_ATTENTION_THREADS / chunks; /* rows that the block loads at once */
    static constexpr uint32_t turns = CUDA_ATTENTION_STEP / pass;
    static constexpr uint32_t blocks = pass >= 16 ? turns : 4; /* table entries that a thread needs for a step */
    uint32_t row, chunk;
    uint32_t ahead[blocks]; /* of the step that is loaded next: read a step before they are needed */
};

template <class KV, int D>
DEVICE_FN void look_ahead(const cuda_attention_args &a, const prefill_walk &walk, prefill_loader<KV, D> &load, uint32_t step)
{
    typedef prefill_loader<KV, D> loader;
#pragma unroll
    for (uint32_t i = 0; i < loader::blocks; i++) {
        const uint32_t in_step = loader::pass >= 16 ? (load.row + i * loader::pass) / 16 : i;
        load.ahead[i] = block_of_group(a, walk.table, step * 4 + in_step, walk.first, walk.last);
    }
}

template <class KV, int D>
DEVICE_FN void load_step(const cuda_attention_args &a, const prefill_walk &walk, const prefill_loader<KV, D> &load,
                         uint32_t step, unsigned char *stage)
{
    typedef prefill_loader<KV, D> loader;
    typedef prefill_shared<KV, D> lies;
    const uint32_t row_bytes = a.head_dim * KV::bytes;
#pragma unroll
    for (uint32_t i = 0; i < loader::turns; i++) {
        const uint32_t row = load.row + i * loader::pass, token = step * CUDA_ATTENTION_STEP + row;
        const uint32_t block = load.ahead[loader::pass >= 16 ? i : i * loader::pass / 16];
        const bool valid = token >= walk.first && token <= walk.last && load.chunk * 16 < row_bytes;
        const unsigned char *from = group_at(a, block, token / 16, walk.kv_head, KV::bytes) + token % 16 * row_bytes
                                  + load.chunk * 16;
        unsigned char *to = stage + row / 16 * unit_of<KV, D>::bytes + unit_offset<KV, D>(row % 16, load.chunk);
        copy_async16(to, from, valid);
        copy_async16(to + lies::values, from + a.v_offset, valid);
    }
    if (KV::bytes == 1 && threadIdx.x < 16) { /* 4 groups of 4 chunks: one thread each */
        const uint32_t group = step * 4 + threadIdx.x / 4;
        const uint32_t block = block_of_group(a, walk.table, group, walk.first, walk.last);
        const bool valid = group * 16 <= walk.last && group * 16 + 16 > walk.first;
        copy_async16(stage + 2 * lies::values + threadIdx.x * 16,
                     group_scales(a, block, group, walk.kv_head) + threadIdx.x % 4 * 16, valid);
    }
}

/* ---- values that are no numbers ------------------------------------------------------------- */

/* Warp: whether V of the step holds an infinity or a NaN. Where a row does not see all of a step, 0 times one of those
 * would reach it; the sequence's own later tokens may hold some (an f16 overflows to infinity). */
template <class KV> DEVICE_FN bool has_wild_values(const unsigned char *values, uint32_t bytes)
{
    bool wild = false;
    for (uint32_t at = lane_id() * 16; at < bytes; at += 512) {
        const words4 v = load16(values + at);
        for (uint32_t i = 0; i < 4; i++) { wild = wild || !KV::W::is_finite(v.w[i]); }
    }
    return warp_any(wild);
}

/* Warp: o += weights . V of UNITS times 16 tokens from t0 on, a row at a time, with what that row does not see taken for
 * zeros. PLACE::of(token, chunk): where 16 bytes of V of a token lie, from `values`. */
template <class W, class PLACE, int D, int UNITS>
DEVICE_FN void sum_by_rows(float (*o)[4], const uint32_t (*weights)[4], const unsigned char *values, const row_view &view, uint32_t t0)
{
    const uint32_t lane = lane_id(), t = lane % 4, matrix = lane / 8, row = matrix % 2 * 8 + lane % 8;
    uint32_t kept[UNITS][4]; /* indexed at run time; the weights themselves stay in registers */
#pragma unroll
    for (uint32_t i = 0; i < 4 * UNITS; i++) { kept[i / 4][i % 4] = weights[i / 4][i % 4]; }
#pragma unroll 1
    for (uint32_t one = 0; one < 16 * UNITS; one++) {
        const uint32_t r = one % 16 / 8, u = one / 16;
        const bool own = one % 8 == lane / 4;
        const uint32_t from = shuffle(r == 0 ? view.from[0] : view.from[1], one % 8 * 4);
        const uint32_t to = shuffle(r == 0 ? view.to[0] : view.to[1], one % 8 * 4);
        uint32_t keep[2];
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t token = t0 + u * 16 + half * 8 + 2 * t;
            keep[half] = (token >= from && token <= to ? 0xffffu : 0) | (token + 1 >= from && token + 1 <= to ? 0xffff0000u : 0);
        }
#pragma unroll
        for (uint32_t i = 0; i < D / 16; i++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, values + PLACE::of(u * 16 + row, 2 * i + matrix / 2));
#pragma unroll
            for (uint32_t n = 0; n < 2; n++) {
                const uint32_t seen[2] = {b[2 * n] & keep[0], b[2 * n + 1] & keep[1]};
                float d[4] = {o[2 * i + n][0], o[2 * i + n][1], o[2 * i + n][2], o[2 * i + n][3]};
                W::mma(d, kept[u], seen);
#pragma unroll
                for (uint32_t c = 0; c < 4; c++) {
                    if (own && c / 2 == r) { o[2 * i + n][c] = d[c]; }
                }
            }
        }
    }
}

template <class KV, int D> struct place_in_units {
    DEVICE_FN uint32_t of(uint32_t token, uint32_t chunk)
    {
        return token / 16 * unit_of<KV, D>::bytes + unit_offset<KV, D>(token % 16, chunk);
    }
};

/* ---- segments ------------------------------------------------------------------------------ */

/* Joins the sums of a segment to those before it and clears them. totals: the block's. */
template <int D> DEVICE_FN void close_segment(row_sums<D> &st, float *totals, bool is_first, float scale_log2)
{
    float *total = totals + threadIdx.x;
    const uint32_t next = CUDA_ATTENTION_THREADS;
    gather_sums<D>(st);
    if (!is_first) {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const join_factors f = join_of(total[r * next], st.max[r], scale_log2);
            st.max[r] = f.max;
            st.sum[r] = join(f, total[(2 + r) * next], st.sum[r]);
#pragma unroll
            for (uint32_t i = 0; i < D / 8; i++) {
#pragma unroll
                for (uint32_t c = 2 * r; c < 2 * r + 2; c++) {
                    st.o[i][c] = join(f, total[(4 + i * 4 + c) * next], st.o[i][c]);
                }
            }
        }
    }
    total[0] = st.max[0];
    total[next] = st.max[1];
    total[2 * next] = st.sum[0];
    total[3 * next] = st.sum[1];
#pragma unroll
    for (uint32_t i = 0; i < D / 2; i++) { total[(4 + i) * next] = st.o[i / 4][i % 4]; }
}

/* ---- the kernel ---------------------------------------------------------------------------- */

template <class KV, int D> DEVICE_FN void attention_prefill(const cuda_attention_args &a)
{
    typedef prefill_shared<KV, D> lies;
    const uint32_t warp = warp_id();
    const uint32_t tile_count = units_of_all<prefill_tiles<CUDA_ATTENTION_TILE>>(a), number = blockIdx.x / a.kv_heads;
    if (number >= tile_count) { return; }
    const found_unit found = find_unit<prefill_tiles<CUDA_ATTENTION_TILE>>(a, tile_count - 1 - number);
    const cuda_attention_sequence sequence = a.sequences[found.sequence];
    const uint32_t packed_first = (tile_count - 1 - number - found.before) * CUDA_ATTENTION_TILE;
    const uint32_t packed_count = sequence.row_count * a.group;
    const uint32_t packed_last = (packed_first + CUDA_ATTENTION_TILE < packed_count ? packed_first + CUDA_ATTENTION_TILE : packed_count) - 1;

    prefill_walk walk;
    walk.table = table_of(a, sequence);
    walk.kv_head = blockIdx.x % a.kv_heads;
    walk.first = view_start(a, sequence.position_first + packed_first / a.group);
    walk.last = sequence.position_first + packed_last / a.group;
    walk.step_first = walk.first / CUDA_ATTENTION_STEP;
    walk.step_last = walk.last / CUDA_ATTENTION_STEP;

    unsigned char *const ring = device_shared();
    unsigned char *const query_area = ring + a.stages * lies::stage;
    float *const totals = (float *)(query_area + lies::queries);

    const prefill_rows rows = rows_of_lane(a, sequence, walk.kv_head, packed_first + warp * 16);

    prefill_loader<KV, D> load;
    load.row = threadIdx.x / prefill_loader<KV, D>::chunks;
    load.chunk = threadIdx.x % prefill_loader<KV, D>::chunks;
    const uint32_t ahead = a.stages > 1 ? a.stages - 1 : 0; /* steps that are loaded before they are needed */
    look_ahead(a, walk, load, walk.step_first);
    for (uint32_t i = 0; i < ahead; i++) {
        if (walk.step_first + i <= walk.step_last) {
            load_step(a, walk, load, walk.step_first + i, ring + i * lies::stage);
            look_ahead(a, walk, load, walk.step_first + i + 1);
        }
        copy_async_commit();
    }

    query_rows<D> q;
    load_queries<KV, D>(q, rows.q, a.head_dim, query_area + warp * query_rows<D>::shared_bytes);
    row_sums<D> st;
    clear_sums<D>(st);
    bool is_first_segment = true;
    uint32_t slot = 0; /* of the ring: that of `step` */
    for (uint32_t step = walk.step_first; step <= walk.step_last; step++) {
        const uint32_t next = step + ahead, next_slot = slot + ahead < a.stages ? slot + ahead : slot + ahead - a.stages;
        if (ahead == 2) { copy_async_wait<1>(); } else { copy_async_wait<0>(); }
        block_sync(); /* the step is here for all, and all are done with the one before, whose place is filled now */
        if (next <= walk.step_last) {
            load_step(a, walk, load, next, ring + next_slot * lies::stage);
            look_ahead(a, walk, load, next + 1);
        }
        copy_async_commit();
        if (ahead == 0) {
            copy_async_wait<0>();
            block_sync();
        }

        const unsigned char *const keys = ring + slot * lies::stage, *const values = keys + lies::values;
        const unsigned char *const scales = values + lies::values;
        const uint32_t t0 = step * CUDA_ATTENTION_STEP;
        float s[8][4];
#pragma unroll
        for (uint32_t u = 0; u < 4; u++) {
            score_unit<KV, D>(s + 2 * u, q, keys + u * unit_of<KV, D>::bytes, scales + u * 64);
        }
        const bool whole = t0 >= rows.whole_first && t0 + CUDA_ATTENTION_STEP - 1 <= rows.whole_last;
        weigh_step<D>(s, st, rows.view, whole, t0, a.scale_log2);
        uint32_t weights[4][4];
#pragma unroll
        for (uint32_t u = 0; u < 4; u++) { pack_weights<KV>(weights[u], s + 2 * u, scales + u * 64 + 32); }
        bool wild = false;
        if constexpr (KV::bytes == 2) { wild = !whole && has_wild_values<KV>(values, lies::values); }
        if (wild) {
            if constexpr (KV::bytes == 2) { sum_by_rows<typename KV::W, place_in_units<KV, D>, D, 4>(st.o, weights, values, rows.view, t0); }
        } else {
#pragma unroll
            for (uint32_t u = 0; u < 4; u++) { sum_unit<KV, D>(st.o, weights[u], values + u * unit_of<KV, D>::bytes); }
        }

        if (a.deterministic != 0 && (step == walk.step_last || (step + 1) % (CUDA_ATTENTION_SEGMENT / CUDA_ATTENTION_STEP) == 0)) {
            close_segment<D>(st, totals, is_first_segment, a.scale_log2);
            is_first_segment = false;
            if (step != walk.step_last) { clear_sums<D>(st); }
        }
        slot = slot + 1 < a.stages ? slot + 1 : 0;
    }
    if (a.deterministic == 0) { gather_sums<D>(st); }
    store_rows<KV, D>(rows.out, st, a.head_dim);
}

/* The entry points of one kind of KV: cuda_attention_prefill_<name>_64, _128 and _256, for head_dim up to that. */
#define ATTENTION_PREFILL_KERNEL(name, KV, D)                                                                       \
    extern "C" __global__ void __launch_bounds__(CUDA_ATTENTION_THREADS)                                              \
        cuda_attention_prefill_##name##_##D(const __grid_constant__ struct cuda_attention_args a)                     \
    {                                                                                                                 \
        launch_begin();                                                                                               \
        attention_prefill<KV, D>(a);                                                                                  \
    }
#define ATTENTION_PREFILL_KERNELS(name, KV)  \
    ATTENTION_PREFILL_KERNEL(name, KV, 64)   \
    ATTENTION_PREFILL_KERNEL(name, KV, 128)  \
    ATTENTION_PREFILL_KERNEL(name, KV, 256)

#endif
