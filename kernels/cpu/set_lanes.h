/* set_lanes: loads of set_impl.h that look at a dtype; after a vec_<isa>.h. */
#ifndef BATON_KERNELS_CPU_SET_LANES_H
#define BATON_KERNELS_CPU_SET_LANES_H

/* 64 bytes, at any address: vec_load aligned to a byte. */
VEC_FN vec vec_load_any(const void *p)
{
    vec a;
    memcpy(&a, p, sizeof(a));
    return a;
}

/* The first `count` (1..16) elements at p as f32; other lanes 0. Reads no byte past them. */
VEC_FN vec load_part(enum dtype dtype, const void *p, uint32_t count)
{
    if (dtype == DTYPE_F32) { return count == 16 ? vec_load(p) : vec_load_part(p, count); }
    uint16_t filled[16];
    if (count < 16) {
        memset(filled, 0, sizeof(filled));
        memcpy(filled, p, count * 2);
        p = filled;
    }
    return dtype == DTYPE_BF16 ? vec_load_bf16(p) : vec_load_f16(p);
}

#endif
