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
    uint32_t tile_rows, tile_heads, tile_kv_heads; /* at most, of a piece */
    uint32_t parts;                                /* of the heads */
    uint32_t piece_first[SEQUENCES_MAX]; /* of each sequence */
    size_t partial_first[SEQUENCES_MAX]; /* floats; with split */
    uint32_t segment_first[SEQUENCES_MAX], segment_count[SEQUENCES_MAX];
};

static uint32_t div_up(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Tiles of a sequence: one row has the heads of many kv heads, which lie side by side in a block and are
 * read as one run; several rows have those of one, whose K and V stay near while rows read them again. */
static uint32_t tile_rows_of(const struct attention_plan *plan, const struct kernels_attention_sequence *seq)
{
    return min_u32(plan->tile_rows, seq->row_count);
}
static uint32_t tile_kv_heads_of(const struct attention_plan *plan, const struct kernels_attention_sequence *seq)
{
    return seq->row_count == 1 ? plan->tile_kv_heads : 1;
}
static uint32_t tiles_of(const struct attention_plan *plan, const struct kernels_attention_sequence *seq)
{
    return div_up(seq->row_count, plan->tile_rows) * div_up(plan->a->kv.layout.kv_heads, tile_kv_heads_of(plan, seq)) * plan->parts;
}

/* One tile of one sequence, found from its number: head by head, of each the last rows first, since
 * they see most. */
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
    const uint32_t heads = plan->a->q_heads / plan->a->kv.layout.kv_heads, row_tiles = div_up(seq->row_count, plan->tile_rows);
    const uint32_t segments = plan->segment_count[low], kv_heads = tile_kv_heads_of(plan, seq);
    uint32_t segment = 0, in_sequence = piece - plan->piece_first[low];
    if (by_segment) {
        segment = in_sequence % segments;
        in_sequence /= segments;
    }
    uint32_t part = in_sequence / row_tiles, row = (row_tiles - 1 - in_sequence % row_tiles) * plan->tile_rows;
    struct set_attention_tile tile = {.row_first = row, .rows = min_u32(plan->tile_rows, seq->row_count - row)};
    tile.kv_head = part / plan->parts * kv_heads;
    tile.kv_heads = min_u32(kv_heads, plan->a->kv.layout.kv_heads - tile.kv_head);
    tile.head_first = part % plan->parts * plan->tile_heads;
    tile.heads = min_u32(plan->tile_heads, heads - tile.head_first);
    tile.segment_first = plan->segment_first[low] + segment;
    tile.segments = by_segment ? 1 : segments;
    if (ret_partial != NULL) {
        const size_t state = SET_PARTIAL_FLOATS((plan->a->kv.layout.head_dim + 15) / 16 * 16);
        size_t in_tile = state * plan->tile_heads * kv_heads * tile_rows_of(plan, seq), here = state * tile.rows * tile.heads * tile.kv_heads;
        *ret_partial = plan->partial + plan->partial_first[low] + (size_t)in_sequence * segments * in_tile + segment * here;
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
        pieces += tiles_of(plan, &plan->sequences[i]) * (by_segment ? plan->segment_count[i] : 1);
    }
    return pieces;
}

/* The longest of some pieces beside all of them, in segments times queries. */
struct share {
    uint64_t longest, all;
};

static struct share share_of(const struct attention_plan *plan, bool by_segment)
{
    struct share share = {0, 0};
    for (uint32_t i = 0; i < plan->sequence_count; i++) {
        const struct kernels_attention_sequence *seq = &plan->sequences[i];
        uint64_t piece = (uint64_t)(by_segment ? 1 : plan->segment_count[i]) * tile_rows_of(plan, seq) * tile_kv_heads_of(plan, seq);
        uint64_t all = piece * tiles_of(plan, seq) * (by_segment ? plan->segment_count[i] : 1);
        if (piece > share.longest) { share.longest = piece; }
        share.all += all;
    }
    return share;
}

/* Pieces are small enough that no thread waits long for the last one. */
static bool is_even(const struct attention_plan *plan, bool by_segment)
{
    struct share share = share_of(plan, by_segment);
    return plan->threads == 1 || share.longest * plan->threads * 2 <= share.all;
}

/* Places the partial results. False if they do not fit. */
static bool place_partials(struct attention_plan *plan)
{
    const size_t state = SET_PARTIAL_FLOATS((plan->a->kv.layout.head_dim + 15) / 16 * 16);
    size_t floats = 0;
    for (uint32_t i = 0; i < plan->sequence_count; i++) {
        const struct kernels_attention_sequence *seq = &plan->sequences[i];
        plan->partial_first[i] = floats;
        floats += (size_t)tiles_of(plan, seq) * plan->segment_count[i] * state * plan->tile_heads * tile_kv_heads_of(plan, seq)
                * tile_rows_of(plan, seq);
    }
    return floats * sizeof(float) <= PARTIAL_BYTES;
}

/* Long runs of heads if the pieces are even so, whole or by segment; else shorter runs. */
static bool choose_split(struct attention_plan *plan)
{
    uint32_t heads = min_u32(plan->a->kv.layout.kv_heads, SET_QUERIES_MAX / plan->tile_heads);
    for (;; heads = (heads + 1) / 2) {
        plan->tile_kv_heads = heads;
        if (is_even(plan, false)) { return false; }
        if (is_even(plan, true) && place_partials(plan)) { return true; }
        if (heads == 1) { return share_of(plan, true).longest < share_of(plan, false).longest && place_partials(plan); }
    }
}

void attention_plan_run(struct attention_plan *plan, const struct cpu_set *set, struct pool *pool,
                        const struct set_scratch *scratch, const struct kernels_attention *a)
{
    const uint32_t heads = a->q_heads / a->kv.layout.kv_heads;
    plan->set = set;
    plan->scratch = scratch;
    plan->a = a;
    plan->tile_heads = min_u32(heads, SET_QUERIES_MAX);
    plan->parts = div_up(heads, plan->tile_heads);
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
        if (choose_split(plan)) {
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
