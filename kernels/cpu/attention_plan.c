#include "kernels/cpu/attention_plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Of one job; more sequences are done in several. */
#define SEQUENCES_MAX 512u

/* Partial results that may exist at once: a context of 128k tokens of 8 kv heads x 4 queries of 64
 * dimensions takes 2.7 MB, one of 1M tokens 22 MB. What does not fit is not split. */
#define PARTIAL_BYTES ((size_t)64 << 20)

struct attention_plan {
    float *partial; /* PARTIAL_BYTES */
    uint32_t threads;

    /* the job */
    const struct cpu_set *set;
    const struct set_scratch *scratch;
    const struct kernels_attention *a;
    const struct kernels_attention_sequence *sequences;
    uint32_t sequence_count;
    uint32_t tile_rows, tile_heads;
    uint32_t head_parts; /* of one kv head */
    bool split;
    uint32_t piece_first[SEQUENCES_MAX]; /* of each sequence */
    size_t partial_first[SEQUENCES_MAX]; /* floats; with split */
    uint32_t segment_first[SEQUENCES_MAX], segment_count[SEQUENCES_MAX];
};

static uint32_t div_up(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* One tile of one sequence, found from its number: of the kv heads' parts, each with all of its tiles of
 * rows, so that K and V of a head stay near while they are read again; last tiles first, since they
 * see most. */
static const struct kernels_attention_sequence *piece_find(const struct attention_plan *plan, uint32_t piece, bool by_segment,
                                                           struct set_attention_tile *ret_tile, float **ret_partial)
{
    uint32_t low = 0, high = plan->sequence_count; /* the last that begins at or before the piece, and is not empty */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (plan->piece_first[middle] <= piece) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const struct kernels_attention_sequence *seq = &plan->sequences[low];
    const uint32_t heads = plan->a->q_heads / plan->a->kv.layout.kv_heads, tiles = div_up(seq->row_count, plan->tile_rows);
    const uint32_t segments = plan->segment_count[low];
    uint32_t segment = 0, in_sequence = piece - plan->piece_first[low];
    if (by_segment) {
        segment = in_sequence % segments;
        in_sequence /= segments;
    }
    uint32_t part = in_sequence / tiles, row = (tiles - 1 - in_sequence % tiles) * plan->tile_rows;
    struct set_attention_tile tile = {.row_first = row, .rows = min_u32(plan->tile_rows, seq->row_count - row)};
    tile.kv_head = part / plan->head_parts;
    tile.head_first = tile.kv_head * heads + part % plan->head_parts * plan->tile_heads;
    tile.heads = min_u32(plan->tile_heads, heads - part % plan->head_parts * plan->tile_heads);
    tile.segment_first = plan->segment_first[low] + segment;
    tile.segments = by_segment ? 1 : segments;
    if (ret_partial != NULL) {
        uint32_t dim_up = (plan->a->kv.layout.head_dim + 15) / 16 * 16;
        size_t state = SET_PARTIAL_FLOATS(dim_up) * plan->tile_heads * min_u32(plan->tile_rows, seq->row_count);
        size_t in_tile = SET_PARTIAL_FLOATS(dim_up) * tile.rows * tile.heads;
        *ret_partial = plan->partial + plan->partial_first[low] + (size_t)in_sequence * segments * state + segment * in_tile;
    }
    *ret_tile = tile;
    return seq;
}

static void whole_piece(const void *arg, uint32_t worker, uint32_t piece)
{
    const struct attention_plan *plan = arg;
    struct set_attention_tile tile;
    const struct kernels_attention_sequence *seq = piece_find(plan, piece, false, &tile, NULL);
    plan->set->attention(plan->a, seq, &tile, NULL, plan->scratch[worker].attention);
}

static void segment_piece(const void *arg, uint32_t worker, uint32_t piece)
{
    const struct attention_plan *plan = arg;
    struct set_attention_tile tile;
    float *partial = NULL;
    const struct kernels_attention_sequence *seq = piece_find(plan, piece, true, &tile, &partial);
    plan->set->attention(plan->a, seq, &tile, partial, plan->scratch[worker].attention);
}

static void join_piece(const void *arg, uint32_t worker, uint32_t piece)
{
    const struct attention_plan *plan = arg;
    struct set_attention_tile tile;
    float *partial = NULL;
    const struct kernels_attention_sequence *seq = piece_find(plan, piece, false, &tile, &partial);
    plan->set->attention_join(plan->a, seq, &tile, partial, plan->scratch[worker].attention);
}

/* Numbers the pieces; by segment or whole. */
static uint32_t number_pieces(struct attention_plan *plan, bool by_segment)
{
    uint32_t pieces = 0;
    for (uint32_t i = 0; i < plan->sequence_count; i++) {
        plan->piece_first[i] = pieces;
        pieces += div_up(plan->sequences[i].row_count, plan->tile_rows) * plan->a->kv.layout.kv_heads * plan->head_parts
                * (by_segment ? plan->segment_count[i] : 1);
    }
    return pieces;
}

/* True where the longest piece would keep others waiting and the partial results fit. */
static bool should_split(struct attention_plan *plan)
{
    if (plan->threads == 1) { return false; }
    uint64_t work = 0, longest = 0;
    size_t floats = 0;
    const uint32_t dim_up = (plan->a->kv.layout.head_dim + 15) / 16 * 16, parts = plan->a->kv.layout.kv_heads * plan->head_parts;
    for (uint32_t i = 0; i < plan->sequence_count; i++) {
        const struct kernels_attention_sequence *seq = &plan->sequences[i];
        uint32_t tiles = div_up(seq->row_count, plan->tile_rows), rows = min_u32(plan->tile_rows, seq->row_count);
        uint64_t piece = (uint64_t)plan->segment_count[i] * rows;
        plan->partial_first[i] = floats;
        floats += (size_t)tiles * parts * plan->segment_count[i] * rows * plan->tile_heads * SET_PARTIAL_FLOATS(dim_up);
        work += piece * tiles * parts;
        if (plan->segment_count[i] > 1 && piece > longest) { longest = piece; }
    }
    return longest * plan->threads * 2 > work && floats * sizeof(float) <= PARTIAL_BYTES;
}

void attention_plan_run(struct attention_plan *plan, const struct cpu_set *set, struct pool *pool,
                        const struct set_scratch *scratch, const struct kernels_attention *a)
{
    const uint32_t heads = a->q_heads / a->kv.layout.kv_heads;
    plan->set = set;
    plan->scratch = scratch;
    plan->a = a;
    plan->tile_heads = min_u32(heads, SET_QUERIES_MAX);
    plan->head_parts = div_up(heads, plan->tile_heads);
    plan->tile_rows = SET_QUERIES_MAX / plan->tile_heads;
    for (uint32_t done = 0; done < a->sequence_count; done += plan->sequence_count) {
        plan->sequences = a->sequences + done;
        plan->sequence_count = min_u32(a->sequence_count - done, SEQUENCES_MAX);
        for (uint32_t i = 0; i < plan->sequence_count; i++) {
            const struct kernels_attention_sequence *seq = &plan->sequences[i];
            uint32_t start = a->window == 0 || seq->position_first < a->window ? 0 : seq->position_first - a->window + 1;
            plan->segment_first[i] = start / SET_SEGMENT_TOKENS;
            plan->segment_count[i] = div_up(seq->position_first + seq->row_count, SET_SEGMENT_TOKENS) - plan->segment_first[i];
        }
        if (should_split(plan)) {
            pool_run(pool, number_pieces(plan, true), segment_piece, plan);
            pool_run(pool, number_pieces(plan, false), join_piece, plan);
        } else {
            pool_run(pool, number_pieces(plan, false), whole_piece, plan);
        }
    }
}

status_t attention_plan_create(uint32_t threads, struct attention_plan **ret_plan, struct diag *diag)
{
    struct attention_plan *plan = calloc(1, sizeof(*plan));
    if (plan == NULL) {
        diag_set(diag, "no memory for the plan of attention");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    plan->threads = threads;
    /* Small pages: few of them are ever touched. */
    void *partial = mmap(NULL, PARTIAL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (partial == MAP_FAILED) {
        int error = errno;
        free(plan);
        diag_set(diag, "cannot map %zu bytes for partial attention: %s", PARTIAL_BYTES, strerror(error));
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, error);
    }
    plan->partial = partial;
    *ret_plan = plan;
    return STATUS_OK;
}

void attention_plan_destroy(struct attention_plan *plan)
{
    if (plan == NULL) { return; }
    munmap(plan->partial, PARTIAL_BYTES);
    free(plan);
}
