#include "kernels/cpu/gemm_run.h"

#include "base/check.h"

#define GEMMS_MAX 8u /* of one job; more are done in several */

/* Panels of a piece with few rows: 4 runs of 8, as long as there are pieces enough. */
#define PANELS_FEW_ROWS 32u
/* Pieces per thread that even out what the threads' cores take. */
#define PIECES_PER_THREAD 8u

/* Pieces of one product: blocks of rows outermost, so that a worker packs x seldom. */
struct gemm_plan {
    const struct kernels_gemm *g;
    uint32_t rows;        /* of a block of rows but the last */
    uint32_t panels;      /* of a piece but the last */
    uint32_t panel_total;
    uint32_t panel_parts; /* pieces along the panels */
    uint32_t piece_first;
};

struct gemm_job {
    const struct cpu_set *set;
    const struct gemm_int_set *integers;
    struct set_scratch *scratch;
    struct gemm_plan plans[GEMMS_MAX];
    uint32_t plan_count;
};

static uint32_t div_up(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static bool is_integer(const struct kernels_gemm *g) { return g->weight->format >= KERNELS_WEIGHT_INT8; }

static void piece_run(const void *arg, uint32_t worker, uint32_t piece)
{
    const struct gemm_job *job = arg;
    uint32_t i = job->plan_count - 1;
    while (piece < job->plans[i].piece_first) { i--; }
    const struct gemm_plan *plan = &job->plans[i];
    piece -= plan->piece_first;
    struct set_gemm_piece p = {.g = plan->g, .row_first = piece / plan->panel_parts * plan->rows,
                               .panel_first = piece % plan->panel_parts * plan->panels};
    p.rows = min_u32(plan->rows, plan->g->rows - p.row_first);
    p.panels = min_u32(plan->panels, plan->panel_total - p.panel_first);
    if (is_integer(plan->g)) {
        job->integers->piece(p.g, p.row_first, p.rows, p.panel_first, p.panels, &job->scratch[worker].integers);
    } else {
        job->set->gemm[plan->g->weight->format](&p, &job->scratch[worker]);
    }
}

/* Rows of x that fit the pack at the widest a set may store them, in whole tiles: multiples of row_step, or of 6
 * where not even one fits. */
static uint32_t block_rows(const struct kernels_gemm *g, uint32_t row_step)
{
    if (is_integer(g)) { return div_up(g->rows, div_up(g->rows, gemm_int_rows_max(g->weight))); }
    size_t row_bytes = ((size_t)g->weight->n_in + 31) / 32 * 32 * sizeof(float) + 64;
    size_t fit = SET_GEMM_PACK_BYTES / row_bytes;
    uint32_t rows_max = fit < SET_GEMM_ROWS_MAX ? (uint32_t)fit : SET_GEMM_ROWS_MAX;
    if (rows_max < row_step) { row_step = 6; }
    rows_max = rows_max / row_step * row_step;
    uint32_t rows = div_up(g->rows, div_up(g->rows, rows_max));
    return rows <= SET_GEMM_PACK_ROWS_MIN ? rows : min_u32(div_up(rows, row_step) * row_step, rows_max);
}

void gemm_run(const struct cpu_set *set, uint32_t row_step, const struct gemm_int_set *integers, struct pool *pool,
              struct set_scratch *scratch, const struct kernels_gemm *gemms, uint32_t count)
{
    const uint32_t threads = pool_threads(pool);
    while (count != 0) {
        struct gemm_job job = {.set = set, .integers = integers, .scratch = scratch};
        uint32_t pieces = 0, taken = min_u32(count, GEMMS_MAX);
        /* Enough pieces that the last ones even out, and none so small that taking it shows. */
        uint64_t panels_total = 0;
        for (uint32_t i = 0; i < taken; i++) { panels_total += kernels_matrix_panels(gemms[i].weight); }
        uint32_t panels = PANELS_FEW_ROWS;
        while (panels > 4 && threads > 1 && panels_total / panels < PIECES_PER_THREAD * (uint64_t)threads) { panels /= 2; }
        for (uint32_t i = 0; i < taken; i++) {
            const struct kernels_gemm *g = &gemms[i];
            if (g->rows == 0) { continue; }
            CHECK(is_integer(g) || set->gemm[g->weight->format] != NULL);
            struct gemm_plan *plan = &job.plans[job.plan_count++];
            *plan = (struct gemm_plan){.g = g, .rows = block_rows(g, row_step), .panel_total = kernels_matrix_panels(g->weight), .piece_first = pieces};
            plan->panels = plan->rows <= SET_GEMM_PACK_ROWS_MIN ? panels : min_u32(panels, SET_GEMM_PANELS_MAX);
            plan->panel_parts = div_up(plan->panel_total, plan->panels);
            pieces += div_up(g->rows, plan->rows) * plan->panel_parts;
        }
        for (uint32_t i = 0; i < threads; i++) {
            scratch[i].pack_x = NULL;
            scratch[i].integers.x = NULL;
        }
        pool_run(pool, pieces, piece_run, &job);
        gemms += taken;
        count -= taken;
    }
}
