/* attention_impl: attention over paged KV of set_impl.h.
 *
 * A tile of queries (rows x heads of one kv head) walks the tokens in tiles of 16, counted from
 * position 0. Per token tile, K is turned so that one vector holds one dimension of 16 tokens:
 * then a query's 16 scores are one vector, summed over dimensions in four chains (d mod 4) joined
 * as (0+1)+(2+3), with no sum across lanes. The online softmax and the walk over V, token after
 * token, follow. Queries share the turned K and the widened V, and blocks of four of them share
 * loads; a query's own sequence of operations is the same in any company:
 *  - a token tile that a query does not see at all is skipped for it;
 *  - in a tile that it sees in part, hidden scores are set to -inf before anything reads them, and
 *    V is walked from its first to its last visible token only, so that what lies in hidden slots
 *    (another sequence's rows, old bytes, a NaN) can never reach it;
 *  - rescaling is left out where its own maximum stayed: that is a product with exactly 1. */

#define ATT_BLOCK 4 /* queries that share loads */

struct att_state {
    float *q;      /* [queries][dim_up], zeros past head_dim */
    float *sum;    /* [queries][dim_up]: of p.V, not yet divided */
    float *k;      /* [dim_up][16 tokens] */
    float *v;      /* [16 tokens][dim_up] */
    float *p;      /* [queries][16] */
    float *max;    /* [queries] */
    float *weight; /* [queries][16]: sum of p, lane by lane */
    uint32_t *from, *to; /* [queries]: visible tokens of this tile; to == 0: none */
    uint32_t queries;
    uint32_t dim_up;     /* head_dim up to a multiple of 16 */
};

/* Turns K of 16 tokens and widens V. A bf16 K is turned in pairs of dimensions, each pair one lane:
 * half the shuffles, and the pair comes apart as two dimensions by a shift and a mask. */
VEC_FN void att_load_kv(const struct att_state *st, const unsigned char *k, const unsigned char *v, uint32_t dim,
                        enum dtype dtype)
{
    const uint32_t element = dtype_bytes(dtype);
    const size_t row = (size_t)dim * element;
    uint32_t d = 0;
    if (dtype == DTYPE_BF16) {
        for (; d + 32 <= dim; d += 32) {
            vec r[16];
            VEC_UNROLL
            for (int t = 0; t < 16; t++) { r[t] = vec_load_any(k + (size_t)t * row + (size_t)d * 2); }
            vec_transpose(r);
            VEC_UNROLL
            for (int i = 0; i < 16; i++) {
                vec_store(st->k + (size_t)(d + 2 * (uint32_t)i) * 16, vec_even_bf16(r[i]));
                vec_store(st->k + (size_t)(d + 2 * (uint32_t)i + 1) * 16, vec_odd_bf16(r[i]));
            }
        }
    }
    for (; d < st->dim_up; d += 16) {
        uint32_t count = dim - d < 16 ? dim - d : 16;
        vec r[16];
        for (uint32_t t = 0; t < 16; t++) { r[t] = load_part(dtype, k + t * row + (size_t)d * element, count); }
        vec_transpose(r);
        for (uint32_t i = 0; i < 16; i++) { vec_store(st->k + (size_t)(d + i) * 16, r[i]); }
    }
    for (uint32_t t = 0; t < 16; t++) {
        const unsigned char *from = v + t * row;
        float *to = st->v + (size_t)t * st->dim_up;
        for (d = 0; d + 16 <= dim; d += 16) { vec_store(to + d, load_part(dtype, from + (size_t)d * element, 16)); }
        if (d < dim) { vec_store(to + d, load_part(dtype, from + (size_t)d * element, dim - d)); }
    }
}

/* p[query] = q[query] . K for `count` queries from `first`. */
VEC_FN void att_scores(const struct att_state *st, uint32_t first, const int count, uint32_t dim)
{
    vec chains[4 * ATT_BLOCK];
    VEC_UNROLL
    for (int i = 0; i < 4 * count; i++) { chains[i] = vec_zero(); }
    const float *q = st->q + (size_t)first * st->dim_up;
    for (uint32_t d = 0; d < dim; d += 4) { /* both sides hold zeros from head_dim to dim_up */
        VEC_UNROLL
        for (int c = 0; c < 4; c++) {
            vec k = vec_load(st->k + (size_t)(d + (uint32_t)c) * 16);
            VEC_UNROLL
            for (int i = 0; i < count; i++) {
                chains[4 * i + c] = vec_fma(vec_set(q[(size_t)i * st->dim_up + d + (uint32_t)c]), k, chains[4 * i + c]);
            }
        }
    }
    VEC_UNROLL
    for (int i = 0; i < count; i++) {
        vec score = vec_add(vec_add(chains[4 * i], chains[4 * i + 1]), vec_add(chains[4 * i + 2], chains[4 * i + 3]));
        vec_store(st->p + (size_t)(first + (uint32_t)i) * 16, score);
    }
}

/* Scores to weights; moves the running maximum, and with it what was summed so far. Weights are
 * summed lane by lane, and across lanes once at the end. Where the maximum stays, the factor would be
 * e^0, exactly 1: nothing is multiplied. */
VEC_FN void att_softmax(const struct att_state *st, uint32_t query, float scale)
{
    float *p = st->p + (size_t)query * 16, *weight = st->weight + (size_t)query * 16;
    vec score = vec_keep(vec_mul(vec_load(p), vec_set(scale)), st->from[query], st->to[query], -HUGE_VALF);
    float top = vec_max_lane(score);
    if (top > st->max[query]) {
        vec keep = vec_exp(vec_set(st->max[query] - top));
        float *sum = st->sum + (size_t)query * st->dim_up;
        for (uint32_t d = 0; d < st->dim_up; d += 16) { vec_store(sum + d, vec_mul(vec_load(sum + d), keep)); }
        vec_store(weight, vec_mul(vec_load(weight), keep));
        st->max[query] = top;
    }
    vec now = vec_exp(vec_sub(score, vec_set(st->max[query])));
    vec_store(p, now);
    vec_store(weight, vec_add(vec_load(weight), now));
}

/* sum[query][d ..] += p . V over tokens from .. to-1, for `count` queries and `vecs` vectors. */
VEC_FN void att_values(const struct att_state *st, uint32_t first, const int count, uint32_t d, const int vecs,
                       uint32_t from, uint32_t to)
{
    vec sums[4 * ATT_BLOCK];
    float *sum = st->sum + (size_t)first * st->dim_up + d;
    const float *p = st->p + (size_t)first * 16;
    VEC_UNROLL
    for (int i = 0; i < count; i++) {
        VEC_UNROLL
        for (int j = 0; j < vecs; j++) { sums[i * vecs + j] = vec_load(sum + (size_t)i * st->dim_up + 16 * j); }
    }
    for (uint32_t t = from; t < to; t++) {
        vec v[4];
        VEC_UNROLL
        for (int j = 0; j < vecs; j++) { v[j] = vec_load(st->v + (size_t)t * st->dim_up + d + 16 * j); }
        VEC_UNROLL
        for (int i = 0; i < count; i++) {
            vec weight = vec_set(p[16 * i + (int)t]);
            VEC_UNROLL
            for (int j = 0; j < vecs; j++) { sums[i * vecs + j] = vec_fma(weight, v[j], sums[i * vecs + j]); }
        }
    }
    VEC_UNROLL
    for (int i = 0; i < count; i++) {
        VEC_UNROLL
        for (int j = 0; j < vecs; j++) { vec_store(sum + (size_t)i * st->dim_up + 16 * j, sums[i * vecs + j]); }
    }
}

VEC_FN void att_values_all(const struct att_state *st, uint32_t first, const int count, uint32_t from, uint32_t to)
{
    uint32_t d = 0;
    for (; d + 64 <= st->dim_up; d += 64) { att_values(st, first, count, d, 4, from, to); }
    for (; d < st->dim_up; d += 16) { att_values(st, first, count, d, 1, from, to); }
}

static void att_tile(const struct att_state *st, uint32_t dim, float scale)
{
    for (uint32_t first = 0; first < st->queries;) {
        uint32_t left = st->queries - first;
        bool whole = left >= ATT_BLOCK;
        for (uint32_t i = first; whole && i < first + ATT_BLOCK; i++) { whole = st->from[i] == 0 && st->to[i] == 16; }
        if (whole) {
            att_scores(st, first, ATT_BLOCK, dim);
            for (uint32_t i = first; i < first + ATT_BLOCK; i++) { att_softmax(st, i, scale); }
            att_values_all(st, first, ATT_BLOCK, 0, 16);
            first += ATT_BLOCK;
        } else {
            if (st->to[first] > st->from[first]) {
                att_scores(st, first, 1, dim);
                att_softmax(st, first, scale);
                att_values_all(st, first, 1, st->from[first], st->to[first]);
            }
            first++;
        }
    }
}

static void attention_piece(const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                            const struct set_attention_tile *tile, float *scratch)
{
    const struct kv_layout *layout = &a->kv.layout;
    const uint32_t dim = layout->head_dim;
    const size_t head_bytes = kv_layout_head_bytes(layout);
    const size_t v_after_k = layout->kv_heads * head_bytes;
    uint32_t bounds[2][SET_QUERIES_MAX];
    struct att_state st = {.queries = tile->rows * tile->heads, .dim_up = (dim + 15) / 16 * 16, .from = bounds[0], .to = bounds[1]};
    st.q = scratch;
    st.sum = st.q + (size_t)SET_QUERIES_MAX * st.dim_up;
    st.k = st.sum + (size_t)SET_QUERIES_MAX * st.dim_up;
    st.v = st.k + (size_t)SET_TOKENS * st.dim_up;
    st.p = st.v + (size_t)SET_TOKENS * st.dim_up;
    st.max = st.p + SET_QUERIES_MAX * 16;
    st.weight = st.max + SET_QUERIES_MAX;

    for (uint32_t i = 0; i < st.queries; i++) {
        uint32_t row = seq->row_first + tile->row_first + i / tile->heads, head = tile->head_first + i % tile->heads;
        float *q = st.q + (size_t)i * st.dim_up;
        memset(q, 0, st.dim_up * sizeof(float));
        memcpy(q, a->q + row * a->q_stride + (size_t)head * dim, dim * sizeof(float));
        memset(st.sum + (size_t)i * st.dim_up, 0, st.dim_up * sizeof(float));
        st.max[i] = -HUGE_VALF;
        vec_store(st.weight + (size_t)i * 16, vec_zero());
    }

    const uint32_t position_first = seq->position_first + tile->row_first;
    const uint32_t position_last = position_first + tile->rows - 1;
    const uint32_t start = a->window == 0 || position_first < a->window ? 0 : position_first - a->window + 1;
    for (uint32_t token = start / SET_TOKENS * SET_TOKENS; token <= position_last; token += SET_TOKENS) {
        for (uint32_t i = 0; i < st.queries; i++) {
            uint32_t position = position_first + i / tile->heads;
            uint32_t see = a->window == 0 || position < a->window ? 0 : position - a->window + 1;
            bool any = position >= token && see < token + SET_TOKENS;
            st.from[i] = any && see > token ? see - token : 0;
            st.to[i] = !any ? 0 : position - token < SET_TOKENS ? position - token + 1 : SET_TOKENS;
        }
        const unsigned char *k = (const unsigned char *)a->kv.pool
            + kv_layout_slice_offset(layout, seq->blocks[token / layout->block_tokens], a->kv.layer)
            + tile->kv_head * head_bytes + (size_t)(token % layout->block_tokens) * dim * dtype_bytes(layout->dtype);
        /* The next tile lies in another block, where no hardware prefetcher would look. */
        if (token + SET_TOKENS <= position_last) {
            uint32_t next = token + SET_TOKENS;
            const unsigned char *ahead = (const unsigned char *)a->kv.pool
                + kv_layout_slice_offset(layout, seq->blocks[next / layout->block_tokens], a->kv.layer)
                + tile->kv_head * head_bytes + (size_t)(next % layout->block_tokens) * dim * dtype_bytes(layout->dtype);
            for (size_t at = 0; at < (size_t)SET_TOKENS * dim * dtype_bytes(layout->dtype); at += 64) {
                __builtin_prefetch(ahead + at, 0, 3);
                __builtin_prefetch(ahead + v_after_k + at, 0, 3);
            }
        }
        switch (layout->dtype) { /* constants, so that the loads are not a switch each */
        case DTYPE_BF16: att_load_kv(&st, k, k + v_after_k, dim, DTYPE_BF16); break;
        case DTYPE_F16: att_load_kv(&st, k, k + v_after_k, dim, DTYPE_F16); break;
        default: att_load_kv(&st, k, k + v_after_k, dim, DTYPE_F32); break;
        }
        att_tile(&st, dim, a->scale);
    }

    for (uint32_t i = 0; i < st.queries; i++) {
        uint32_t row = seq->row_first + tile->row_first + i / tile->heads, head = tile->head_first + i % tile->heads;
        float *out = a->out + row * a->out_stride + (size_t)head * dim;
        const float *sum = st.sum + (size_t)i * st.dim_up;
        const vec weight = vec_set(vec_sum(vec_load(st.weight + (size_t)i * 16)));
        for (uint32_t d = 0; d < dim; d += 16) {
            vec value = vec_div(vec_load(sum + d), weight);
            vec_store_part(out + d, value, dim - d < 16 ? dim - d : 16);
        }
    }
}
