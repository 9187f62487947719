/* fatbin_rows: the assembler text behind fatbin.h; only the generated table includes it. GNU as and clang's
 * read it alike. Pointers need relocation in a position-independent binary, hence .data.rel.ro. */

#define CUDA_FATBIN(id, path)         \
    .section .rodata; .balign 64;     \
    fatbin_first_##id: .incbin path;  \
    fatbin_last_##id:

#define CUDA_FATBIN_TABLE                                             \
    .section .data.rel.ro, "aw"; .balign 8;                           \
    .globl cuda_fatbins; .type cuda_fatbins, @object; cuda_fatbins:

#define CUDA_FATBIN_ROW(id, source)                                   \
    .section .rodata.str1.1, "aMS", @progbits, 1;                     \
    fatbin_source_##id: .asciz source;                                \
    .section .data.rel.ro, "aw";                                      \
    .quad fatbin_first_##id, fatbin_last_##id - fatbin_first_##id, fatbin_source_##id

/* One empty row at the end, so that an empty table has an address of its own. */
#define CUDA_FATBIN_TABLE_END                                         \
    cuda_fatbins_end: .quad 0, 0, 0; .size cuda_fatbins, . - cuda_fatbins; \
    .section .rodata; .balign 8;                                      \
    .globl cuda_fatbin_count; .type cuda_fatbin_count, @object;       \
    cuda_fatbin_count: .quad (cuda_fatbins_end - cuda_fatbins) / 24;  \
    .size cuda_fatbin_count, 8;                                       \
    .section .note.GNU-stack, "", @progbits
