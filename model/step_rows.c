#include "model/step_rows.h"

#include <string.h>

#include "base/check.h"

#define PART_ALIGNMENT 64u
/* Of all block tables of a step: 16 MiB, more tokens of context than any device holds unless prompts of hundreds of
 * sequences are shared over 100,000 tokens. */
#define TABLES_MAX (UINT64_C(4) << 20)

struct layout {
    size_t sequences, slots, ids, positions, numbers, kept_sequences, kept_from, kept_positions, tables, total;
    size_t tables_max;
};

static size_t take_part(struct layout *layout, size_t bytes)
{
    size_t at = layout->total;
    layout->total += (bytes + PART_ALIGNMENT - 1) / PART_ALIGNMENT * PART_ALIGNMENT;
    return at;
}

static struct layout lay_out(const struct step_rows_limits *limits, bool copies_tables)
{
    struct layout layout = {0};
    const size_t rows = limits->rows_max, spans = limits->spans_max;
    layout.sequences = take_part(&layout, spans * sizeof(struct kernels_attention_sequence));
    layout.slots = take_part(&layout, rows * sizeof(struct kernels_kv_slot));
    layout.ids = take_part(&layout, rows * sizeof(uint32_t));
    layout.positions = take_part(&layout, rows * sizeof(uint32_t));
    layout.numbers = take_part(&layout, rows * sizeof(uint32_t));
    layout.kept_sequences = take_part(&layout, spans * sizeof(struct kernels_attention_sequence));
    layout.kept_from = take_part(&layout, rows * sizeof(uint32_t));
    layout.kept_positions = take_part(&layout, rows * sizeof(uint32_t));
    if (copies_tables) {
        const uint64_t blocks = limits->context_tokens / limits->block_tokens + 1, all = blocks * spans;
        layout.tables_max = (size_t)(all < TABLES_MAX ? all : TABLES_MAX);
    }
    layout.tables = take_part(&layout, layout.tables_max * sizeof(uint32_t));
    return layout;
}

size_t step_rows_bytes(const struct step_rows_limits *limits, bool copies_tables)
{
    return lay_out(limits, copies_tables).total;
}

status_t step_rows_init(struct step_rows *rows, struct kernels *kernels, const struct step_rows_limits *limits,
                        struct diag *diag)
{
    const bool copies_tables = !kernels_uses_host_memory(kernels);
    const struct layout layout = lay_out(limits, copies_tables);
    void *region = NULL;
    TRY(kernels_exchange_alloc(kernels, layout.total, &region, diag));
    uint8_t *base = region;
    *rows = (struct step_rows){
        .kernels = kernels,
        .limits = *limits,
        .region = base,
        .region_bytes = layout.total,
        .sequences = (void *)(base + layout.sequences),
        .slots = (void *)(base + layout.slots),
        .ids = (void *)(base + layout.ids),
        .positions = (void *)(base + layout.positions),
        .numbers = (void *)(base + layout.numbers),
        .kept_sequences = (void *)(base + layout.kept_sequences),
        .kept_from = (void *)(base + layout.kept_from),
        .kept_positions = (void *)(base + layout.kept_positions),
        .tables = copies_tables ? (void *)(base + layout.tables) : NULL,
        .tables_max = layout.tables_max,
    };
    for (uint32_t r = 0; r < limits->rows_max; r++) { rows->numbers[r] = r; }
    return STATUS_OK;
}

void step_rows_fini(struct step_rows *rows)
{
    if (rows->region) { kernels_exchange_free(rows->kernels, rows->region, rows->region_bytes); }
    *rows = (struct step_rows){0};
}

static uint32_t span_kept(const struct forward_span *span)
{
    return span->want == FORWARD_WANT_ALL ? span->row_count : span->want == FORWARD_WANT_LAST ? 1u : 0u;
}

static uint32_t span_blocks(const struct step_rows *rows, const struct forward_span *span)
{
    return (span->first_position + span->row_count - 1) / rows->limits.block_tokens + 1;
}

static status_t check_span(const struct step_rows *rows, const struct forward_step *step, uint32_t index,
                           struct diag *diag)
{
    const struct step_rows_limits *limits = &rows->limits;
    const struct forward_span *span = &step->spans[index];
    uint64_t end = (uint64_t)span->first_position + span->row_count;
    if (span->row_count == 0 || end > limits->context_tokens) {
        diag_set(diag, "span %u has positions %u to %llu; the model takes 1 to %u tokens", index, span->first_position,
                 (unsigned long long)end, limits->context_tokens);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    for (uint32_t r = 0; r < span->row_count; r++) {
        uint32_t block = span->block_table[(span->first_position + r) / limits->block_tokens];
        if (span->tokens[r] >= limits->vocab_size) {
            diag_set(diag, "span %u, position %u: token %u is not in the vocabulary of %u", index,
                     span->first_position + r, span->tokens[r], limits->vocab_size);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        if (block >= step->kv_block_count) {
            diag_set(diag, "span %u, position %u: block %u is not in the pool of %u", index, span->first_position + r,
                     block, step->kv_block_count);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
    }
    return STATUS_OK;
}

static status_t check_step(const struct step_rows *rows, const struct forward_step *step, struct diag *diag)
{
    uint64_t count = 0, blocks = 0;
    if (step->span_count > rows->limits.spans_max) {
        diag_set(diag, "a step of %u spans; the limit is %u", step->span_count, rows->limits.spans_max);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    for (uint32_t i = 0; i < step->span_count; i++) {
        TRY(check_span(rows, step, i, diag));
        count += step->spans[i].row_count;
        blocks += span_blocks(rows, &step->spans[i]);
    }
    if (count > rows->limits.rows_max) {
        diag_set(diag, "a step of %llu rows; the limit is %u", (unsigned long long)count, rows->limits.rows_max);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    if (rows->tables && blocks > rows->tables_max) {
        diag_set(diag, "a step over block tables of %llu blocks; the limit is %zu", (unsigned long long)blocks,
                 rows->tables_max);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    return STATUS_OK;
}

/* Row for row of one span; and which of its rows go on to the end. */
static void set_span(struct step_rows *rows, const struct forward_span *span, const uint32_t *table)
{
    const uint32_t block_tokens = rows->limits.block_tokens;
    const uint32_t kept = span_kept(span), skipped = span->row_count - kept;
    const uint32_t end = span->first_position + span->row_count;
    rows->sequences[rows->sequence_count] = (struct kernels_attention_sequence){
        .row_first = rows->rows, .row_count = span->row_count, .position_first = span->first_position, .blocks = table};
    rows->kept_sequences[rows->sequence_count] = (struct kernels_attention_sequence){
        .row_first = rows->kept_rows, .row_count = kept, .position_first = span->first_position + skipped, .blocks = table};
    for (uint32_t r = 0; r < span->row_count; r++) {
        const uint32_t position = span->first_position + r, row = rows->rows + r;
        rows->ids[row] = span->tokens[r];
        rows->positions[row] = position;
        rows->slots[row] = (struct kernels_kv_slot){.block = span->block_table[position / block_tokens],
                                                    .slot = position % block_tokens};
    }
    for (uint32_t r = 0; r < kept; r++) {
        rows->kept_from[rows->kept_rows + r] = rows->rows + skipped + r;
        rows->kept_positions[rows->kept_rows + r] = span->first_position + skipped + r;
    }
    rows->rows += span->row_count;
    rows->kept_rows += kept;
    rows->sequence_count++;
    if (span->row_count > rows->row_count_max) { rows->row_count_max = span->row_count; }
    if (end > rows->context_max) { rows->context_max = end; }
    rows->is_decode = rows->is_decode && span->row_count == 1 && kept == 1;
}

status_t step_rows_set(struct step_rows *rows, const struct forward_step *step, struct diag *diag)
{
    rows->rows = rows->kept_rows = rows->sequence_count = rows->row_count_max = rows->context_max = 0;
    TRY(check_step(rows, step, diag));
    rows->is_decode = step->span_count > 0;
    size_t tables_used = 0;
    for (uint32_t i = 0; i < step->span_count; i++) {
        const struct forward_span *span = &step->spans[i];
        const uint32_t *table = span->block_table;
        if (rows->tables) {
            const uint32_t blocks = span_blocks(rows, span);
            table = memcpy(rows->tables + tables_used, span->block_table, blocks * sizeof *table);
            tables_used += blocks;
        }
        set_span(rows, span, table);
    }
    rows->used_bytes = rows->tables ? (size_t)((uint8_t *)(rows->tables + tables_used) - rows->region) : 0;
    return STATUS_OK;
}

static void fill_rows(struct step_rows *rows, uint32_t count)
{
    CHECK(count <= rows->limits.rows_max);
    for (; rows->rows < count; rows->rows++) {
        const uint32_t row = rows->rows;
        if (row < rows->limits.spans_max) {
            rows->sequences[row] = (struct kernels_attention_sequence){.row_first = row, .blocks = rows->tables};
        }
        rows->ids[row] = rows->positions[row] = 0;
        rows->slots[row] = (struct kernels_kv_slot){.block = KERNELS_SLOT_NONE};
    }
}

void step_rows_fill_up(struct step_rows *rows, uint32_t count)
{
    CHECK(rows->is_decode);
    CHECK(count <= rows->limits.spans_max);
    fill_rows(rows, count);
    rows->sequence_count = rows->kept_rows = rows->rows;
}

void step_rows_set_empty(struct step_rows *rows, uint32_t count, bool is_decode)
{
    rows->rows = 0;
    rows->is_decode = is_decode;
    rows->row_count_max = is_decode ? 1 : count;
    rows->context_max = count;
    rows->used_bytes = rows->tables ? (size_t)((uint8_t *)rows->tables - rows->region) : 0;
    if (is_decode) {
        step_rows_fill_up(rows, count);
        return;
    }
    fill_rows(rows, count);
    rows->sequence_count = rows->kept_rows = 1;
    rows->kept_sequences[0] = rows->sequences[0];
    rows->kept_from[0] = rows->kept_positions[0] = 0;
}

void step_rows_send(struct step_rows *rows) { kernels_exchange_send(rows->kernels, rows->region, rows->used_bytes); }
