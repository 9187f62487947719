/* sample: chooses a token for each row of logits, in the steps of sample_args.h.
 * Flow:    logits of the head -> cuda_sample_adjust .. cuda_sample_draw, one launch each -> kernels_sample_result
 * Thread:  of the device. Blocks (chunk, row); none waits for another: the last one of a row decides.
 * Memory:  the workspace of sample_args.h; the logits, which only cuda_sample_adjust writes.
 *
 * Cost     at 64 rows of 128k tokens a pass over the logits is 34 MB: 8 us at 4.3 TB/s, less where they are still in
 *          L2. Greedy and min_p take two (min_p's second computes few masses), temperature alone one and a half of
 *          masses (about 40 f64 operations a token), top_k two and a half of compares, top_p two of masses. The last
 *          block's part is 2 to 6 us a step, over all rows at once. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sample_args.h"
#include "kernels/cuda/sample_block.cuh"
#include "kernels/cuda/sample_math.cuh"
#include "kernels/cuda/sample_select.cuh"

#define PER_THREAD (CUDA_SAMPLE_CHUNK / CUDA_SAMPLE_THREADS)
#define QUADS (PER_THREAD / 4)
#define SCALE_MAX 3.4e38f /* finite: the best's own distance is 0 */
#define LN2_UP 0.694f /* a little above ln 2 */
#define MASS_REACH 32.5f /* exp(-32.5) * 2^44 rounds to 0, and so it does a few percent before */

/* Four neighbouring logits from `first` on; past the row -inf, which weighs nothing and is no best token. */
DEVICE_FN void load_quad(const float *row, uint32_t first, uint32_t vocab, float ret[4])
{
    if (first + 4 <= vocab && ((uintptr_t)row & 15) == 0) {
        const words4 words = load16(row + first);
        for (uint32_t i = 0; i < 4; i++) { ret[i] = f32_of_bits(words.w[i]); }
        return;
    }
    for (uint32_t i = 0; i < 4; i++) { ret[i] = first + i < vocab ? row[first + i] : f32_of_bits(0xff800000u); }
}

/* The first token of a thread's quad number `quad` in a chunk: neighbouring threads read neighbouring 16 bytes. */
DEVICE_FN uint32_t quad_token(uint32_t chunk, uint32_t quad)
{
    return chunk * CUDA_SAMPLE_CHUNK + (quad * CUDA_SAMPLE_THREADS + threadIdx.x) * 4;
}

/* All of a thread's logits of a chunk, loads first, so that they fly together. */
DEVICE_FN void load_chunk(const float *row, uint32_t chunk, uint32_t vocab, float ret[QUADS][4])
{
#pragma unroll
    for (uint32_t quad = 0; quad < QUADS; quad++) { load_quad(row, quad_token(chunk, quad), vocab, ret[quad]); }
}

/* ---- ADJUST -------------------------------------------------------------------------------- */

DEVICE_FN float adjusted(float logit, const struct cuda_sample_adjustment &adjust, const struct cuda_sample_row &row)
{
    if (adjust.has_bias) { logit = add_rn(logit, adjust.bias); }
    if (adjust.is_masked && logit == logit) { logit = f32_of_bits(0xff800000u); }
    if (adjust.is_seen && row.repetition != 1.0f) {
        logit = logit > 0.0f ? div_rn(logit, row.repetition) : mul_rn(logit, row.repetition);
    }
    if (adjust.output_count > 0) {
        logit = add_rn(logit, -mul_rn(row.frequency, (float)adjust.output_count));
        logit = add_rn(logit, -row.presence);
    }
    return logit;
}

extern "C" __global__ void cuda_sample_adjust(const __grid_constant__ struct cuda_sample_args a)
{
    launch_begin();
    const uint32_t row = blockIdx.y;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        /* The later steps count in these, and each is a launch of its own. */
        for (uint32_t step = 0; step < CUDA_SAMPLE_STEPS; step++) { a.states[row].arrived[step] = 0; }
        a.states[row].listed[0] = 0;
        a.states[row].listed[1] = 0;
    }
    const struct cuda_sample_row params = a.params[row];
    float *logits = a.logits + row * a.stride;
    for (uint32_t i = blockIdx.x * CUDA_SAMPLE_THREADS + threadIdx.x; i < params.adjust_count;
         i += gridDim.x * CUDA_SAMPLE_THREADS) {
        const struct cuda_sample_adjustment adjust = a.adjusts[params.adjust_first + i];
        if (adjust.token < a.vocab) { logits[adjust.token] = adjusted(logits[adjust.token], adjust, params); }
    }
}

/* ---- SCAN ---------------------------------------------------------------------------------- */

/* What a softmax of this row needs to know; the last block's first thread writes it. */
DEVICE_FN void begin_row(const struct cuda_sample_args &a, uint32_t row, const struct cuda_sample_extreme &all)
{
    const struct cuda_sample_row params = a.params[row];
    struct cuda_sample_state *state = &a.states[row];
    state->todo = 0;
    struct cuda_sample_result result = {all.argmax, CUDA_SAMPLE_OK, 0};
    if (all.nan_at != TOKEN_NONE) {
        result = {0, CUDA_SAMPLE_NAN, all.nan_at};
    } else if (all.key_max == KEY_MINUS_INF) {
        result = {0, CUDA_SAMPLE_NONE, 0};
    }
    a.results[row] = result;
    if (result.fault != CUDA_SAMPLE_OK || params.temperature == 0.0f) { return; }

    const float max = logit_of(all.key_max), temperature = params.temperature;
    state->max = max;
    state->inverse_temperature = div_rn64(1.0, (double)temperature);
    state->run = {0, TOKEN_NONE}; /* all */
    state->top_k = params.top_k < a.vocab ? params.top_k : 0;
    const bool has_top_p = params.top_p < 1.0f;
    state->bins_have_mass = has_top_p && (state->top_k == 0 || state->top_k > CUDA_SAMPLE_FEW_MAX);
    state->mass_reach = mul_rn(MASS_REACH, temperature);
    state->draw_reach = state->mass_reach;
    state->floor_mass = 0;
    if (params.min_p > 0.0f) {
        state->floor_mass = (uint64_t)ceil(mul_rn64((double)params.min_p, (double)MASS_ONE));
        /* min_p >= 2^-e; the rest is for what the distance in f32 errs by. */
        const uint32_t exponent = f32_bits(params.min_p) >> 23;
        const float e = exponent > 0 ? (float)(127 - (int)exponent) : 149.0f;
        const float reach = add_rn(mul_rn(e, LN2_UP), 0.1f);
        if (reach < MASS_REACH) { state->draw_reach = mul_rn(mul_rn(reach, temperature), 1.001f); }
    }
    uint32_t todo = 1u << CUDA_SAMPLE_DRAW;
    if (state->top_k != 0 || has_top_p) {
        todo |= 1u << CUDA_SAMPLE_HISTOGRAM | 1u << CUDA_SAMPLE_SELECT;
        /* The bins cover the logits that the cut can fall among. top_k tokens reach the least of as many groups'
         * maxima, however far below an outlier lies. */
        uint32_t lowest = state->top_k != 0 && state->top_k <= all.groups ? all.key_floor : all.key_min;
        float range = add_rn(max, -logit_of(lowest));
        if (state->top_k == 0 && range > state->mass_reach) { range = state->mass_reach; }
        const float scale = range > 0.0f ? div_rn((float)(CUDA_SAMPLE_BINS - 2), range) : SCALE_MAX;
        state->bin_scale = scale < SCALE_MAX ? scale : SCALE_MAX;
    }
    state->todo = todo;
}

extern "C" __global__ void __launch_bounds__(CUDA_SAMPLE_THREADS)
    cuda_sample_scan(const __grid_constant__ struct cuda_sample_args a)
{
    launch_begin();
    struct sample_shared *shared = (struct sample_shared *)device_shared();
    const uint32_t chunk = blockIdx.x, row = blockIdx.y;
    float logits[QUADS][4];
    load_chunk(a.logits + row * a.stride, chunk, a.vocab, logits);
    uint64_t best = 0; /* key, then the lower token */
    uint32_t nan_at = TOKEN_NONE, key_min = TOKEN_NONE;
#pragma unroll
    for (uint32_t quad = 0; quad < QUADS; quad++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t token = quad_token(chunk, quad) + i;
            if (token >= a.vocab) { continue; }
            const float logit = logits[quad][i];
            if (logit != logit) {
                nan_at = nan_at < token ? nan_at : token;
                continue;
            }
            const uint32_t key = key_of(logit);
            const uint64_t rank = (uint64_t)key << 32 | (uint32_t)~token;
            best = rank > best ? rank : best;
            if (key > KEY_MINUS_INF && key < key_min) { key_min = key; }
        }
    }
    const uint32_t group = (uint32_t)(best >> 32);
    const bool has_group = group > KEY_MINUS_INF;
    struct cuda_sample_extreme own;
    own.groups = (uint32_t)block_sum(shared, has_group ? 1 : 0);
    own.key_floor = block_min(shared, has_group ? group : TOKEN_NONE);
    own.nan_at = block_min(shared, nan_at);
    own.key_min = block_min(shared, key_min);
    best = block_max64(shared, best);
    own.key_max = (uint32_t)(best >> 32);
    own.argmax = ~(uint32_t)best;
    struct cuda_sample_extreme *extremes = a.extremes + (uint64_t)row * a.chunks;
    if (threadIdx.x == 0) { extremes[chunk] = own; }
    if (!is_last_block(shared, &a.states[row].arrived[CUDA_SAMPLE_SCAN], a.chunks)) { return; }

    /* At most 64 chunks; a thread for each. */
    best = 0;
    struct cuda_sample_extreme all = {0, 0, TOKEN_NONE, TOKEN_NONE, TOKEN_NONE, 0};
    if (threadIdx.x < a.chunks) {
        const struct cuda_sample_extreme *from = &extremes[threadIdx.x];
        best = (uint64_t)load4_l2(&from->key_max) << 32 | (uint32_t)~load4_l2(&from->argmax);
        all.nan_at = load4_l2(&from->nan_at);
        all.key_min = load4_l2(&from->key_min);
        all.key_floor = load4_l2(&from->key_floor);
        all.groups = load4_l2(&from->groups);
    }
    best = block_max64(shared, best);
    all.key_max = (uint32_t)(best >> 32);
    all.argmax = ~(uint32_t)best;
    all.nan_at = block_min(shared, all.nan_at);
    all.key_min = block_min(shared, all.key_min);
    all.key_floor = block_min(shared, all.key_floor);
    all.groups = (uint32_t)block_sum(shared, all.groups);
    if (threadIdx.x == 0) { begin_row(a, row, all); }
}

/* ---- HISTOGRAM ----------------------------------------------------------------------------- */

extern "C" __global__ void __launch_bounds__(CUDA_SAMPLE_THREADS)
    cuda_sample_histogram(const __grid_constant__ struct cuda_sample_args a)
{
    launch_begin();
    const uint32_t chunk = blockIdx.x, row = blockIdx.y, bin = threadIdx.x;
    struct cuda_sample_state *state = &a.states[row];
    if ((state->todo >> CUDA_SAMPLE_HISTOGRAM & 1) == 0) { return; }
    struct sample_shared *shared = (struct sample_shared *)device_shared();
    const bool has_mass = state->bins_have_mass != 0, has_count = state->top_k != 0;
    const struct softmax softmax = {state->max, state->inverse_temperature};
    const float scale = state->bin_scale, reach = state->mass_reach;
    float logits[QUADS][4];
    load_chunk(a.logits + row * a.stride, chunk, a.vocab, logits);
    histogram_clear(shared);
    uint64_t mass = 0; /* of this thread's tokens, those of the last bin too, which is not summed up alone */
#pragma unroll
    for (uint32_t quad = 0; quad < QUADS; quad++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float logit = logits[quad][i];
            const uint32_t of = bin_of(softmax.max, scale, logit);
            if (has_count && of < CUDA_SAMPLE_BINS - 1) { (void)atomic_add_u32(&shared->count[of], 1); }
            if (!has_mass || is_beyond(softmax.max, logit, reach)) { continue; }
            const uint64_t one = mass_of(softmax, logit);
            mass += one;
            if (of < CUDA_SAMPLE_BINS - 1 && one != 0) { histogram_add(shared, of, one); }
        }
    }
    block_sync();
    uint64_t *bin_masses = a.bin_masses + (uint64_t)row * (a.chunks + 1) * CUDA_SAMPLE_BINS;
    uint32_t *bin_counts = a.bin_counts + (uint64_t)row * a.chunks * CUDA_SAMPLE_BINS;
    uint64_t *masses = a.masses + (uint64_t)row * a.chunks;
    if (has_count) { bin_counts[chunk * CUDA_SAMPLE_BINS + bin] = shared->count[bin]; }
    if (has_mass) {
        bin_masses[chunk * CUDA_SAMPLE_BINS + bin] = histogram_of(shared, bin);
        mass = block_sum(shared, mass);
        if (threadIdx.x == 0) { masses[chunk] = mass; }
    }
    if (!is_last_block(shared, &state->arrived[CUDA_SAMPLE_HISTOGRAM], a.chunks)) { return; }

    uint64_t count = 0, merged = 0, total = 0;
    for (uint32_t i = 0; i < a.chunks; i++) {
        if (has_count) { count += load4_l2(&bin_counts[i * CUDA_SAMPLE_BINS + bin]); }
        if (has_mass) { merged += load8_l2(&bin_masses[i * CUDA_SAMPLE_BINS + bin]); }
    }
    if (has_mass) {
        total = block_sum(shared, threadIdx.x < a.chunks ? load8_l2(&masses[threadIdx.x]) : 0);
        bin_masses[a.chunks * CUDA_SAMPLE_BINS + bin] = merged;
    }
    const uint64_t needed = has_count ? state->top_k : mass_needed(a.params[row].top_p, total);
    const struct crossing cut = block_crossing(shared, has_count ? count : merged, needed - 1);
    if (threadIdx.x == 0) {
        state->bin[0] = cut.thread;
        state->above[0] = cut.before;
        state->needed[0] = needed;
    }
}

/* ---- SELECT -------------------------------------------------------------------------------- */

/* Few tokens are kept: they are listed with the bin's, and SELECT has all that top_p needs to know. */
DEVICE_FN bool lists_all_kept(const struct cuda_sample_state *state)
{
    return state->top_k != 0 && state->top_k <= CUDA_SAMPLE_FEW_MAX;
}

/* The last block's part of SELECT: from the row's listed tokens to the run that is kept. */
DEVICE_FN void select_in_row(const struct cuda_sample_args &a, uint32_t row, uint32_t again, struct sample_shared *shared,
                             const struct sample_items &items)
{
    struct cuda_sample_state *state = &a.states[row];
    const struct softmax softmax = {state->max, state->inverse_temperature};
    const struct cuda_sample_run all = {0, TOKEN_NONE};
    const float top_p = a.params[row].top_p;
    const bool by_count = state->top_k != 0 && again == 0;
    const uint64_t above = lists_all_kept(state) ? 0 : state->above[again];
    struct cuda_sample_run run = select_run(shared, items, softmax, all, by_count, state->needed[again] - above);
    if (by_count && top_p < 1.0f) {
        /* top_p's share is of what top_k kept. */
        const uint64_t listed = sum_of_run(shared, items, softmax, run);
        if (lists_all_kept(state)) {
            run = select_run(shared, items, softmax, run, false, mass_needed(top_p, listed));
        } else {
            const uint64_t *merged = a.bin_masses + ((uint64_t)row * (a.chunks + 1) + a.chunks) * CUDA_SAMPLE_BINS;
            const uint64_t mass = threadIdx.x < state->bin[0] ? merged[threadIdx.x] : 0;
            const uint64_t better = block_sum(shared, mass);
            const uint64_t needed = mass_needed(top_p, better + listed);
            if (needed > better) {
                run = select_run(shared, items, softmax, run, false, needed - better);
            } else {
                const struct crossing cut = block_crossing(shared, mass, needed - 1);
                if (threadIdx.x == 0) {
                    state->bin[1] = cut.thread;
                    state->above[1] = cut.before;
                    state->needed[1] = needed;
                    state->todo |= 1u << CUDA_SAMPLE_SELECT_AGAIN;
                }
            }
        }
    }
    if (threadIdx.x == 0) { state->run = run; }
}

DEVICE_FN void select_step(const struct cuda_sample_args &a, uint32_t again)
{
    const uint32_t chunk = blockIdx.x, row = blockIdx.y;
    const uint32_t step = again ? CUDA_SAMPLE_SELECT_AGAIN : CUDA_SAMPLE_SELECT;
    struct cuda_sample_state *state = &a.states[row];
    if ((state->todo >> step & 1) == 0) { return; }
    struct sample_shared *shared = (struct sample_shared *)device_shared();
    struct sample_items items;
    items.row = a.logits + row * a.stride;
    items.vocab = a.vocab;
    items.max = state->max;
    items.scale = state->bin_scale;
    items.bin_last = state->bin[again];
    items.bin_first = again == 0 && lists_all_kept(state) ? 0 : items.bin_last;
    items.list = a.list + (uint64_t)row * CUDA_SAMPLE_LIST_MAX;
    float logits[QUADS][4];
    load_chunk(items.row, chunk, a.vocab, logits);
    uint32_t hits = 0; /* a bit for each of this thread's tokens */
#pragma unroll
    for (uint32_t quad = 0; quad < QUADS; quad++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const bool hit = quad_token(chunk, quad) + i < a.vocab && is_listed(items, logits[quad][i]);
            hits |= (hit ? 1u : 0u) << (quad * 4 + i);
        }
    }
    uint64_t found;
    uint64_t at = block_sum_before(shared, count_ones(hits), &found);
    if (found != 0) {
        if (threadIdx.x == 0) { shared->flag = atomic_add_u32(&state->listed[again], (uint32_t)found); }
        block_sync();
        at += shared->flag;
#pragma unroll
        for (uint32_t quad = 0; quad < QUADS; quad++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                if ((hits >> (quad * 4 + i) & 1) == 0 || at >= CUDA_SAMPLE_LIST_MAX) { continue; }
                items.list[at++] = (uint64_t)key_of(logits[quad][i]) << 32 | (quad_token(chunk, quad) + i);
            }
        }
    }
    if (!is_last_block(shared, &state->arrived[step], a.chunks)) { return; }
    items.listed = load4_l2(&state->listed[again]);
    select_in_row(a, row, again, shared, items);
}

extern "C" __global__ void __launch_bounds__(CUDA_SAMPLE_THREADS)
    cuda_sample_select(const __grid_constant__ struct cuda_sample_args a)
{
    launch_begin();
    select_step(a, 0);
}

extern "C" __global__ void __launch_bounds__(CUDA_SAMPLE_THREADS)
    cuda_sample_select_again(const __grid_constant__ struct cuda_sample_args a)
{
    launch_begin();
    select_step(a, 1);
}

/* ---- DRAW ---------------------------------------------------------------------------------- */

/* The mass of a token, or 0 where it is not kept. */
DEVICE_FN uint64_t kept_mass(const struct cuda_sample_state &state, uint32_t token, float logit)
{
    if (is_beyond(state.max, logit, state.draw_reach) || !is_in_run(state.run, key_of(logit), token)) { return 0; }
    const uint64_t mass = mass_of({state.max, state.inverse_temperature}, logit);
    return mass >= state.floor_mass ? mass : 0;
}

extern "C" __global__ void __launch_bounds__(CUDA_SAMPLE_THREADS)
    cuda_sample_draw(const __grid_constant__ struct cuda_sample_args a)
{
    launch_begin();
    const uint32_t chunk = blockIdx.x, row = blockIdx.y;
    if ((a.states[row].todo >> CUDA_SAMPLE_DRAW & 1) == 0) { return; }
    struct sample_shared *shared = (struct sample_shared *)device_shared();
    const struct cuda_sample_state state = a.states[row];
    const float *logits_row = a.logits + row * a.stride;
    uint64_t mass = 0;
    {
        float logits[QUADS][4];
        load_chunk(logits_row, chunk, a.vocab, logits);
#pragma unroll
        for (uint32_t quad = 0; quad < QUADS; quad++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) { mass += kept_mass(state, quad_token(chunk, quad) + i, logits[quad][i]); }
        }
    }
    mass = block_sum(shared, mass);
    uint64_t *masses = a.masses + (uint64_t)row * a.chunks;
    if (threadIdx.x == 0) { masses[chunk] = mass; }
    if (!is_last_block(shared, &a.states[row].arrived[CUDA_SAMPLE_DRAW], a.chunks)) { return; }

    const uint64_t of_chunk = threadIdx.x < a.chunks ? load8_l2(&masses[threadIdx.x]) : 0;
    const uint64_t total = block_sum(shared, of_chunk);
    uint64_t target = draw_target(a.params[row].bits, total);
    const struct crossing in_chunk = block_crossing(shared, of_chunk, target);
    target -= in_chunk.before;
    /* In order of token id: each thread has neighbours now. */
    const uint32_t first = in_chunk.thread * CUDA_SAMPLE_CHUNK + threadIdx.x * PER_THREAD;
    uint64_t of_token[PER_THREAD];
    mass = 0;
#pragma unroll
    for (uint32_t quad = 0; quad < QUADS; quad++) {
        float logits[4];
        load_quad(logits_row, first + quad * 4, a.vocab, logits);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            of_token[quad * 4 + i] = kept_mass(state, first + quad * 4 + i, logits[i]);
            mass += of_token[quad * 4 + i];
        }
    }
    const struct crossing in_thread = block_crossing(shared, mass, target);
    if (threadIdx.x != in_thread.thread) { return; }
    target -= in_thread.before;
    uint32_t chosen = TOKEN_NONE;
#pragma unroll
    for (uint32_t i = 0; i < PER_THREAD; i++) {
        if (chosen != TOKEN_NONE) { continue; }
        if (target < of_token[i]) { chosen = first + i; }
        target -= of_token[i];
    }
    a.results[row].token = chosen;
}
