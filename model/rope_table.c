#include "model/rope_table.h"

#include <math.h>

#include "base/check.h"

/* Long wavelengths are stretched by the factor, short ones stay, those between are blended. */
static float llama3_scaled(float inverse, const struct model_config *config)
{
    float factor = (float)config->rope_factor;
    float low = (float)config->rope_low_factor, high = (float)config->rope_high_factor;
    float original = (float)config->rope_original_tokens;
    float wavelength = (float)(2.0 * 3.14159265358979323846) / inverse;
    if (wavelength < original / high) { return inverse; }
    if (wavelength > original / low) { return inverse / factor; }
    float smooth = (original / wavelength - low) / (high - low);
    return (1.0f - smooth) * inverse / factor + smooth * inverse;
}

void rope_table_init(struct rope_table *table, const struct model_config *config)
{
    CHECK(config->rope != MODEL_ROPE_NONE);
    table->pair_count = config->head_dim / 2;
    CHECK(table->pair_count <= ROPE_TABLE_PAIRS_MAX);
    for (uint32_t i = 0; i < table->pair_count; i++) {
        float exponent = (float)(2 * i) / (float)config->head_dim;
        /* The power in double and rounded once: the float power differs between C libraries. */
        float inverse = 1.0f / (float)pow((double)(float)config->rope_theta, (double)exponent);
        if (config->rope == MODEL_ROPE_LINEAR) { inverse /= (float)config->rope_factor; }
        if (config->rope == MODEL_ROPE_LLAMA3) { inverse = llama3_scaled(inverse, config); }
        table->inverse_frequency[i] = inverse;
    }
}

void rope_table_row(const struct rope_table *table, uint32_t position, float *ret_cos, float *ret_sin)
{
    for (uint32_t i = 0; i < table->pair_count; i++) {
        /* The angle is rounded to float32 as in transformers. Its cosine is taken in double and rounded:
         * two nodes must agree on it to the bit, and C libraries agree on the double far below half a
         * float's last place, but not on cosf. */
        float angle = (float)position * table->inverse_frequency[i];
        ret_cos[i] = (float)cos((double)angle);
        ret_sin[i] = (float)sin((double)angle);
    }
}
