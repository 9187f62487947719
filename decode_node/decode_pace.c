#include "decode_node/decode_pace.h"

#include "sched/rate.h"

/* While nothing is measured: few enough not to be felt, enough to learn from. */
#define FIRST_ROWS 8u
/* Aims lower than the bound: half of all steps take longer than predicted, and it is the slow ones that
 * somebody waits for. */
#define AIM_PERCENT 75u

static uint32_t size_of(uint32_t decode_rows)
{
    uint32_t size = 0;
    while (decode_rows > 1 && size + 1 < PACE_SIZES) {
        decode_rows /= 2;
        size++;
    }
    return size;
}

/* Of the nearest smaller batch where this size was not seen, which is quicker and so errs on the safe
 * side; else of the nearest larger one. 0: no step has only decoded yet. */
static uint64_t decode_ns_of(const struct decode_pace *pace, uint32_t decode_rows)
{
    uint32_t size = size_of(decode_rows);
    for (uint32_t i = size + 1; i-- > 0;) {
        if (pace->decode_ns[i] > 0) { return pace->decode_ns[i]; }
    }
    for (uint32_t i = size + 1; i < PACE_SIZES; i++) {
        if (pace->decode_ns[i] > 0) { return pace->decode_ns[i]; }
    }
    return 0;
}

void decode_pace_learn(struct decode_pace *pace, uint32_t decode_rows, uint32_t prompt_rows, uint64_t step_ns)
{
    if (prompt_rows == 0) {
        if (decode_rows == 0 || step_ns == 0) { return; }
        uint64_t *mean = &pace->decode_ns[size_of(decode_rows)];
        *mean = rate_mean(*mean, step_ns);
        return;
    }
    uint64_t base_ns = decode_rows == 0 ? 0 : decode_ns_of(pace, decode_rows);
    if (decode_rows > 0 && base_ns == 0) { return; }
    uint64_t added_ns = step_ns > base_ns ? step_ns - base_ns : 0;
    /* Never 0, which says that nothing was seen. */
    pace->row_ns = rate_mean(pace->row_ns, added_ns / prompt_rows + 1);
}

uint32_t decode_pace_rows(const struct decode_pace *pace, uint32_t decode_rows, uint32_t stretch_percent)
{
    if (decode_rows == 0 || stretch_percent == 0) { return UINT32_MAX; }
    uint64_t base_ns = decode_ns_of(pace, decode_rows);
    if (base_ns == 0 || pace->row_ns == 0) { return FIRST_ROWS; }
    uint64_t extra_percent = stretch_percent > 100 ? stretch_percent - 100 : 0;
    uint64_t rows = base_ns / 100 * extra_percent / 100 * AIM_PERCENT / pace->row_ns;
    if (rows >= UINT32_MAX) { return UINT32_MAX - 1; }
    return rows == 0 ? 1 : (uint32_t)rows;
}
