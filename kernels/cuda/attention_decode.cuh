/* attention_decode: sequences with one row in the call: one step of generation.
 * Flow:    attention_plan -> launch -> [attention_decode] -> attention_math
 * Thread:  as many blocks of 4 warps as the chip holds at once; the q heads of a kv head, 16 at most, are the rows of
 *          one mma tile, so K and V are read once for all of them.
 * Memory:  a ring of units of K and V for every warp, so that warps do not wait for each other; scratch for what blocks
 *          found and another joins.
 *
 * A pair is one sequence and one kv head (and one tile of 16 of its q heads). Its context is cut in units: steps of 64
 * tokens, or, where results are deterministic, segments of 512. All units of all pairs lie in one row, and every block
 * takes the same number of neighbours: long and short sequences in one batch keep all of the chip busy, down to
 * the last unit. What a block has of one pair is its run.
 *  - Fast: the four warps take quarters of a run, join them, and where a pair has several runs, each is a piece in the
 *    scratch, which the block that finishes last joins in the order of the context.
 *  - Deterministic: each unit is a piece, and the block that finishes last joins them, which are the joins that the
 *    prefill kernel does. Where there are more units than pieces, one warp walks a whole pair and joins as it goes.
 * Bytes   K and V of every context once: 4 warps x ring of up to 24 KiB a block, two blocks an SM, are under way. */
#ifndef BATON_KERNELS_CUDA_ATTENTION_DECODE_CUH
#define BATON_KERNELS_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention_find.cuh"
#include "kernels/cuda/attention_math.cuh"

#define DECODE_WARPS (CUDA_ATTENTION_THREADS / 32)

/* ---- shared memory ------------------------------------------------------------------------- */

template <class KV, int D> struct decode_shared {
    static constexpr uint32_t slot = CUDA_ATTENTION_SLOT_BYTES(D, KV::bytes); /* values of a unit, then its scales */
    static constexpr uint32_t slots = CUDA_ATTENTION_SLOTS(D, KV::bytes);
    static constexpr uint32_t ring = CUDA_ATTENTION_RING_BYTES(D, KV::bytes);
    static constexpr uint32_t warp = ring + query_rows<D>::shared_bytes;
};

/* ---- units --------------------------------------------------------------------------------- */

DEVICE_FN uint32_t decode_tiles(const cuda_attention_args &a) { return (a.group + 15) / 16; }

/* Units of one pair. */
DEVICE_FN uint32_t pair_units(const cuda_attention_args &a, uint32_t position)
{
    const uint32_t tokens = a.deterministic != 0 ? CUDA_ATTENTION_SEGMENT : CUDA_ATTENTION_STEP;
    return position / tokens - view_start(a, position) / tokens + 1;
}

/* Of a sequence: one lane for each kv head and tile of q heads. */
struct decode_units {
    DEVICE_FN uint32_t of(const cuda_attention_args &a, const cuda_attention_sequence &s)
    {
        return s.row_count == 1 ? pair_units(a, s.position_first) * a.kv_heads * decode_tiles(a) : 0;
    }
};
struct decode_pairs {
    DEVICE_FN uint32_t of(const cuda_attention_args &a, const cuda_attention_sequence &s)
    {
        return s.row_count == 1 ? a.kv_heads * decode_tiles(a) : 0;
    }
};

struct decode_pair {
    uint32_t number; /* among all that could be: sequence * lanes + lane */
    uint32_t kv_head;
    uint32_t head_first, rows; /* the q heads that are the tile's rows */
    uint32_t row;              /* of q and out */
    uint32_t first, last;      /* tokens that are seen */
    const uint32_t *table;
};

DEVICE_FN decode_pair pair_of_lane(const cuda_attention_args &a, uint32_t sequence, uint32_t lane)
{
    const cuda_attention_sequence s = a.sequences[sequence];
    const uint32_t tiles = decode_tiles(a), tile = lane % tiles;
    decode_pair pair;
    pair.number = sequence * a.kv_heads * tiles + lane;
    pair.kv_head = lane / tiles;
    pair.head_first = pair.kv_head * a.group + tile * 16;
    pair.rows = a.group - tile * 16 < 16 ? a.group - tile * 16 : 16;
    pair.row = s.row_first;
    pair.last = s.position_first;
    pair.first = view_start(a, pair.last);
    pair.table = table_of(a, s);
    return pair;
}

/* ---- loads --------------------------------------------------------------------------------- */

/* The front of a warp's loads: units come in the order K K K K V V V V of each step of 64 tokens. */
struct decode_front {
    uint32_t step, end; /* the step that is loaded next; the one to stop before */
    uint32_t slot;      /* of the ring */
    /* Table entries of 32 groups of 16 tokens, a segment, one in each lane, and those of the segment after. */
    uint32_t segment, blocks, blocks_after;
};

DEVICE_FN uint32_t segment_blocks(const cuda_attention_args &a, const decode_pair &pair, uint32_t segment)
{
    return block_of_group(a, pair.table, segment * 32 + lane_id(), pair.first, pair.last);
}

/* Starts the loads of unit `unit` (0-3 K, 4-7 V) of the front's step; a group of copies in any case. */
template <class KV, int D>
DEVICE_FN void load_unit(const cuda_attention_args &a, const decode_pair &pair, decode_front &front, uint32_t unit,
                         unsigned char *ring)
{
    typedef decode_shared<KV, D> lies;
    typedef unit_of<KV, D> units;
    if (front.step < front.end) {
        const uint32_t group = front.step * 4 + unit % 4, lane = lane_id(), of_v = unit / 4;
        if (unit == 0 && front.step * CUDA_ATTENTION_STEP / CUDA_ATTENTION_SEGMENT != front.segment) {
            front.segment++;
            front.blocks = front.blocks_after;
            front.blocks_after = segment_blocks(a, pair, front.segment + 1);
        }
        const uint32_t block = shuffle(front.blocks, group % 32), row_bytes = a.head_dim * KV::bytes;
        const unsigned char *from = group_at(a, block, group, pair.kv_head, KV::bytes) + (of_v != 0 ? a.v_offset : 0);
        unsigned char *to = ring + front.slot * lies::slot;
#pragma unroll
        for (uint32_t i = 0; i < units::chunks / 2; i++) {
            const uint32_t row = (lane + i * 32) / units::chunks, chunk = (lane + i * 32) % units::chunks;
            const uint32_t token = group * 16 + row;
            copy_async16(to + unit_offset<KV, D>(row, chunk), from + row * row_bytes + chunk * 16,
                         token >= pair.first && token <= pair.last && chunk * 16 < row_bytes);
        }
        if (KV::bytes == 1 && lane < 2) {
            copy_async16(to + units::bytes + lane * 16,
                         group_scales(a, block, group, pair.kv_head) + of_v * 32 + lane * 16,
                         group * 16 <= pair.last && group * 16 + 16 > pair.first);
        }
        front.step += unit == 7;
    }
    front.slot = front.slot + 1 < lies::slots ? front.slot + 1 : 0;
    copy_async_commit();
}

/* ---- a run --------------------------------------------------------------------------------- */

/* Warp: sums of steps begin .. end-1 of a pair, gathered. q is loaded already. */
template <class KV, int D>
DEVICE_FN void attend_steps(const cuda_attention_args &a, const decode_pair &pair, const query_rows<D> &q, uint32_t begin,
                            uint32_t end, unsigned char *ring, row_sums<D> &st)
{
    typedef decode_shared<KV, D> lies;
    clear_sums<D>(st);
    decode_front front;
    front.step = begin;
    front.end = end;
    front.slot = 0;
    front.segment = begin * CUDA_ATTENTION_STEP / CUDA_ATTENTION_SEGMENT;
    front.blocks = segment_blocks(a, pair, front.segment);
    front.blocks_after = segment_blocks(a, pair, front.segment + 1);
#pragma unroll 1
    for (uint32_t i = 0; i < lies::slots; i++) { load_unit<KV, D>(a, pair, front, i % 8, ring); }

    uint32_t slot = 0; /* of the ring: the unit that is used next; the front will fill it again */
    for (uint32_t step = begin; step < end; step++) {
        const uint32_t t0 = step * CUDA_ATTENTION_STEP;
        float s[8][4];
#pragma unroll
        for (uint32_t u = 0; u < 4; u++) {
            copy_async_wait<lies::slots - 1>();
            warp_sync();
            const unsigned char *unit = ring + slot * lies::slot;
            score_unit<KV, D>(s + 2 * u, q, unit, unit + unit_of<KV, D>::bytes);
            slot = slot + 1 < lies::slots ? slot + 1 : 0;
            warp_sync(); /* all lanes have read it */
            load_unit<KV, D>(a, pair, front, (u + lies::slots) % 8, ring);
        }
        const row_view view = {{pair.first, pair.first}, {pair.last, pair.last}};
        weigh_step<D>(s, st, view, t0 >= pair.first && t0 + CUDA_ATTENTION_STEP - 1 <= pair.last, t0, a.scale_log2);
#pragma unroll
        for (uint32_t u = 0; u < 4; u++) {
            copy_async_wait<lies::slots - 1>();
            warp_sync();
            const unsigned char *unit = ring + slot * lies::slot;
            uint32_t weights[4];
            pack_weights<KV>(weights, s + 2 * u, unit + unit_of<KV, D>::bytes);
            sum_unit<KV, D>(st.o, weights, unit);
            slot = slot + 1 < lies::slots ? slot + 1 : 0;
            warp_sync();
            load_unit<KV, D>(a, pair, front, (u + 4 + lies::slots) % 8, ring);
        }
    }
    copy_async_wait<0>(); /* none but empty groups are left; the ring may be used for something else now */
    gather_sums<D>(st);
    warp_sync();
}

template <class KV, int D>
DEVICE_FN void load_pair_queries(const cuda_attention_args &a, const decode_pair &pair, query_rows<D> &q, unsigned char *shared)
{
    const uint16_t *rows[2];
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        const uint32_t row = lane_id() / 4 + r * 8;
        rows[r] = row < pair.rows ? (const uint16_t *)a.q + pair.row * a.q_stride + (uint64_t)(pair.head_first + row) * a.head_dim
                                  : nullptr;
    }
    load_queries<KV, D>(q, rows, a.head_dim, shared);
}

/* ---- pieces -------------------------------------------------------------------------------- */

/* A piece: [rows][head_dim] of o, [rows] of max, [rows] of sum, f32. The next starts at 16 bytes again. */
DEVICE_FN uint32_t piece_floats(const cuda_attention_args &a)
{
    return ((a.group < 16 ? a.group : 16) * (a.head_dim + 2) + 3) / 4 * 4;
}

/* Warp: to global or shared memory. */
template <class KV, int D>
DEVICE_FN void store_piece(const cuda_attention_args &a, const decode_pair &pair, const row_sums<D> &st, float *piece)
{
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        const uint32_t row = lane_id() / 4 + r * 8;
        if (row >= pair.rows) { continue; }
        if (lane_id() % 4 == 0) {
            piece[pair.rows * a.head_dim + row] = st.max[r];
            piece[pair.rows * (a.head_dim + 1) + row] = st.sum[r];
        }
#pragma unroll
        for (uint32_t i = 0; i < D / 16; i++) {
            if (i * 16 >= a.head_dim) { continue; }
#pragma unroll
            for (uint32_t column = 0; column < 2; column++) {
                float v[2];
                pair_of<KV, D>(v, st, i, column, r);
                float *at = piece + row * a.head_dim + dim_of<KV>(i, column);
                at[0] = v[0];
                at[1] = v[1];
            }
        }
    }
}

/* Four neighbouring dimensions of one row, and how far they are summed. */
struct decode_quad {
    float max, sum, o[4];
};

DEVICE_FN decode_quad load_quad(const cuda_attention_args &a, const decode_pair &pair, const float *piece, uint32_t quad, bool shared)
{
    const uint32_t row = quad * 4 / a.head_dim;
    const float *max = piece + pair.rows * a.head_dim + row, *sum = max + pair.rows;
    decode_quad v;
    words4 o;
    if (shared) {
        o = load16(piece + quad * 4);
        v.max = *max;
        v.sum = *sum;
    } else {
        o = load16_l2(piece + quad * 4);
        v.max = f32_of_bits(load4_l2(max));
        v.sum = f32_of_bits(load4_l2(sum));
    }
    for (uint32_t i = 0; i < 4; i++) { v.o[i] = f32_of_bits(o.w[i]); }
    return v;
}

DEVICE_FN void join_quad(decode_quad &total, const decode_quad &next, float scale_log2)
{
    const join_factors f = join_of(total.max, next.max, scale_log2);
    total.max = f.max;
    total.sum = join(f, total.sum, next.sum);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) { total.o[i] = join(f, total.o[i], next.o[i]); }
}

/* Pieces first .. first + count-1, `stride` floats apart, in order. Several are read at a time. */
DEVICE_FN decode_quad join_pieces(const cuda_attention_args &a, const decode_pair &pair, const float *pieces, uint32_t stride,
                                  uint32_t count, uint32_t quad, bool shared)
{
    decode_quad total = load_quad(a, pair, pieces, quad, shared);
    uint32_t i = 1;
    for (; i + 4 <= count; i += 4) {
        decode_quad next[4];
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) { next[k] = load_quad(a, pair, pieces + (uint64_t)(i + k) * stride, quad, shared); }
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) { join_quad(total, next[k], a.scale_log2); }
    }
    for (; i < count; i++) { join_quad(total, load_quad(a, pair, pieces + (uint64_t)i * stride, quad, shared), a.scale_log2); }
    return total;
}

template <class KV>
DEVICE_FN void store_quad(const cuda_attention_args &a, const decode_pair &pair, const decode_quad &v, uint32_t quad)
{
    const uint32_t row = quad * 4 / a.head_dim, dim = quad * 4 % a.head_dim;
    uint16_t *out = (uint16_t *)a.out + pair.row * a.out_stride + (uint64_t)(pair.head_first + row) * a.head_dim + dim;
    const float inverse = div_rn(1.0f, v.sum);
    ((uint32_t *)out)[0] = KV::Q::pack(finish(v.o[0], inverse), finish(v.o[1], inverse));
    ((uint32_t *)out)[1] = KV::Q::pack(finish(v.o[2], inverse), finish(v.o[3], inverse));
}

/* Block: `arrived` of `total` pieces of a pair are in the scratch now; true in the block that brought the last. It
 * leaves the counter zero for the next launch. told: a word in shared memory. */
DEVICE_FN bool arrive(const cuda_attention_args &a, const decode_pair &pair, uint32_t arrived, uint32_t total, uint32_t *told)
{
    thread_fence();
    block_sync();
    if (threadIdx.x == 0) {
        const uint32_t before = atomic_add_u32(a.arrivals + pair.number, arrived);
        *told = before + arrived == total;
        if (before + arrived == total) { a.arrivals[pair.number] = 0; }
    }
    block_sync();
    const bool is_last = *told != 0;
    thread_fence();
    return is_last;
}

/* ---- runs ---------------------------------------------------------------------------------- */

enum decode_way {
    DECODE_FAST,     /* a run's steps in quarters, one for each warp */
    DECODE_SEGMENTS, /* each segment of a run is a piece */
    DECODE_WALK,     /* one warp walks a pair, segment by segment */
};

struct decode_run {
    decode_pair pair;
    uint32_t begin, end;   /* units of the pair, of its first one on */
    uint32_t pieces;       /* of the pair, in the scratch */
    uint32_t piece_first;  /* the pair's first one */
    uint32_t piece;        /* DECODE_FAST: that of this run */
};

/* Warp: joins a segment to those before it. `next` is its piece in shared memory, `total` what is kept of the pair. */
template <class KV>
DEVICE_FN void walk_on(const cuda_attention_args &a, const decode_pair &pair, float *total, const float *next, bool is_first,
                       bool is_last)
{
    const uint32_t quads = pair.rows * a.head_dim / 4, lane = lane_id();
    float *const maxima = total + pair.rows * a.head_dim, *const sums = maxima + pair.rows;
    const float *const next_max = next + pair.rows * a.head_dim;
    for (uint32_t quad = lane; quad < quads; quad += 32) {
        decode_quad v = load_quad(a, pair, next, quad, true);
        if (!is_first) {
            decode_quad before = load_quad(a, pair, total, quad, true);
            join_quad(before, v, a.scale_log2);
            v = before;
        }
        store16(total + quad * 4, words4{{f32_bits(v.o[0]), f32_bits(v.o[1]), f32_bits(v.o[2]), f32_bits(v.o[3])}});
        if (is_last) { store_quad<KV>(a, pair, v, quad); }
    }
    warp_sync(); /* all lanes have read the maxima and sums of before */
    if (lane < pair.rows) {
        float max = next_max[lane], sum = next_max[pair.rows + lane];
        if (!is_first) {
            const join_factors f = join_of(maxima[lane], max, a.scale_log2);
            max = f.max;
            sum = join(f, sums[lane], sum);
        }
        maxima[lane] = max;
        sums[lane] = sum;
    }
    warp_sync();
}

/* What this warp has to attend to in a run, and where its sums go. */
template <class KV, int D>
DEVICE_FN void attend_run(const cuda_attention_args &a, const decode_run &run, decode_way way, unsigned char *own)
{
    typedef decode_shared<KV, D> lies;
    const uint32_t steps = CUDA_ATTENTION_SEGMENT / CUDA_ATTENTION_STEP, warp = warp_id(), floats = piece_floats(a);
    const uint32_t step_first = run.pair.first / CUDA_ATTENTION_STEP, step_last = run.pair.last / CUDA_ATTENTION_STEP;
    const uint32_t segment_first = run.pair.first / CUDA_ATTENTION_SEGMENT;
    const uint32_t share = way == DECODE_FAST ? (run.end - run.begin + DECODE_WARPS - 1) / DECODE_WARPS : 1;
    const uint32_t stride = way == DECODE_SEGMENTS ? DECODE_WARPS : way == DECODE_WALK ? 1 : run.end - run.begin;
    const uint32_t unit_first = run.begin + (way == DECODE_WALK ? 0 : warp * share);
    if (unit_first >= run.end) { return; }
    query_rows<D> q;
    load_pair_queries<KV, D>(a, run.pair, q, own + lies::ring);
#pragma unroll 1
    for (uint32_t unit = unit_first; unit < run.end; unit += stride) {
        uint32_t begin = step_first + unit, end = step_first + (unit + share < run.end ? unit + share : run.end);
        if (way != DECODE_FAST) {
            begin = (segment_first + unit) * steps;
            end = begin + steps;
            begin = begin > step_first ? begin : step_first;
            end = end < step_last + 1 ? end : step_last + 1;
        }
        row_sums<D> st;
        attend_steps<KV, D>(a, run.pair, q, begin, end, own, st);
        store_piece<KV, D>(a, run.pair, st,
                           way == DECODE_SEGMENTS ? a.pieces + (uint64_t)(run.piece_first + unit) * floats : (float *)own);
        if (way == DECODE_WALK) {
            warp_sync();
            walk_on<KV>(a, run.pair, a.pieces + (uint64_t)run.piece_first * floats, (const float *)own, unit == 0,
                        unit + 1 == run.end);
        }
    }
}

/* Block: makes the warps' quarters one piece of the scratch, or the result where the pair is no more than this run. */
template <class KV, int D>
DEVICE_FN void join_warps(const cuda_attention_args &a, const decode_run &run, const unsigned char *shared)
{
    typedef decode_shared<KV, D> lies;
    const decode_pair &pair = run.pair;
    const uint32_t share = (run.end - run.begin + DECODE_WARPS - 1) / DECODE_WARPS;
    const uint32_t warps = (run.end - run.begin + share - 1) / share, quads = pair.rows * a.head_dim / 4;
    float *to = a.pieces + (uint64_t)run.piece * piece_floats(a);
    for (uint32_t quad = threadIdx.x; quad < quads; quad += CUDA_ATTENTION_THREADS) {
        const decode_quad v = join_pieces(a, pair, (const float *)shared, lies::warp / 4, warps, quad, true);
        if (run.pieces == 1) {
            store_quad<KV>(a, pair, v, quad);
            continue;
        }
        store16(to + quad * 4, words4{{f32_bits(v.o[0]), f32_bits(v.o[1]), f32_bits(v.o[2]), f32_bits(v.o[3])}});
        if (quad * 4 % a.head_dim == 0) {
            to[pair.rows * a.head_dim + quad * 4 / a.head_dim] = v.max;
            to[pair.rows * (a.head_dim + 1) + quad * 4 / a.head_dim] = v.sum;
        }
    }
}

/* ---- the kernel ---------------------------------------------------------------------------- */

/* The next run of a block, of units unit .. end-1 of all; found: where `unit` is, or the sequence before. */
DEVICE_FN decode_run next_run(const cuda_attention_args &a, found_unit &found, uint32_t unit, uint32_t end, uint32_t each)
{
    uint32_t of_sequence = units_at<decode_units>(a, found.sequence);
    while (unit >= found.before + of_sequence) {
        found.before += of_sequence;
        found.sequence++;
        of_sequence = units_at<decode_units>(a, found.sequence);
    }
    const uint32_t count = of_sequence / (a.kv_heads * decode_tiles(a)), lane = (unit - found.before) / count;
    const uint32_t first = found.before + lane * count; /* of the pair */
    decode_run run;
    run.pair = pair_of_lane(a, found.sequence, lane);
    run.begin = unit - first;
    run.end = end - first < count ? end - first : count;
    if (a.deterministic != 0) {
        run.piece = run.piece_first = first;
        run.pieces = count;
    } else {
        /* Numbers of blocks and of pairs both rise along the row of units: their sum names a run. */
        run.piece = unit / each + run.pair.number;
        run.piece_first = first / each + run.pair.number;
        run.pieces = (first + count - 1) / each - first / each + 1;
    }
    return run;
}

template <class KV, int D> DEVICE_FN void attention_decode(const cuda_attention_args &a)
{
    typedef decode_shared<KV, D> lies;
    unsigned char *const shared = device_shared(), *const own = shared + warp_id() * lies::warp;
    uint32_t total = units_of_all<decode_units>(a);
    const decode_way way = a.deterministic == 0 ? DECODE_FAST : total <= a.piece_capacity ? DECODE_SEGMENTS : DECODE_WALK;
    uint32_t each = (total + gridDim.x - 1) / gridDim.x; /* units of a block */
    uint32_t unit, end;
    found_unit found;
    if (way == DECODE_WALK) {
        total = units_of_all<decode_pairs>(a);
        unit = warp_id() * gridDim.x + blockIdx.x;
        end = total;
    } else {
        if (way == DECODE_FAST && each < DECODE_WARPS) { each = DECODE_WARPS; }
        unit = blockIdx.x * each;
        end = unit + each < total ? unit + each : total;
        if (unit < end) { found = find_unit<decode_units>(a, unit); }
    }
    while (unit < end) {
        decode_run run;
        if (way == DECODE_WALK) {
            found = find_unit<decode_pairs>(a, unit);
            run.pair = pair_of_lane(a, found.sequence, unit - found.before);
            run.begin = 0;
            run.end = pair_units(a, run.pair.last);
            run.piece_first = run.pair.number;
            unit += DECODE_WARPS * gridDim.x;
        } else {
            run = next_run(a, found, unit, end, each);
            unit += run.end - run.begin;
        }
        attend_run<KV, D>(a, run, way, own);
        if (way == DECODE_WALK) { continue; } /* warps go their own ways */
        if (way == DECODE_FAST) {
            block_sync();
            join_warps<KV, D>(a, run, shared);
        }
        const bool alone = way == DECODE_FAST && run.pieces == 1;
        const uint32_t arrived = way == DECODE_FAST ? 1 : run.end - run.begin;
        if (!alone && arrive(a, run.pair, arrived, run.pieces, (uint32_t *)(shared + DECODE_WARPS * lies::warp))) {
            const uint32_t quads = run.pair.rows * a.head_dim / 4, floats = piece_floats(a);
            const float *pieces = a.pieces + (uint64_t)run.piece_first * floats;
            for (uint32_t quad = threadIdx.x; quad < quads; quad += CUDA_ATTENTION_THREADS) {
                store_quad<KV>(a, run.pair, join_pieces(a, run.pair, pieces, floats, run.pieces, quad, false), quad);
            }
        }
        block_sync(); /* the next run fills the rings again */
    }
}

/* The entry points of one kind of KV: cuda_attention_decode_<name>_64, _128 and _256, for head_dim up to that. */
#define ATTENTION_DECODE_KERNEL(name, KV, D)                                                                          \
    extern "C" __global__ void __launch_bounds__(CUDA_ATTENTION_THREADS)                                              \
        cuda_attention_decode_##name##_##D(const __grid_constant__ struct cuda_attention_args a)                      \
    {                                                                                                                 \
        launch_begin();                                                                                               \
        attention_decode<KV, D>(a);                                                                                   \
    }
#define ATTENTION_DECODE_KERNELS(name, KV)  \
    ATTENTION_DECODE_KERNEL(name, KV, 64)   \
    ATTENTION_DECODE_KERNEL(name, KV, 128)  \
    ATTENTION_DECODE_KERNEL(name, KV, 256)

#endif
