/* A product with weights of -1 and +1 adds sums of a few inputs that a few bits look up in a table,
   computed once for all outputs. A word of bits is 32 inputs of one output; TABLES of them cover it. */
struct dense_bits {
    int32_t inputs, outputs;
    const uint32_t *bits; /* of 512 inputs, 16 outputs at a time, 32 inputs at a time: 16 words */
    struct finish finish;
};

enum { INPUTS_AT_ONCE = 512, TABLE_FLOATS = 128 };

#if defined(__AVX512F__)

/* 8 tables of 16 sums of 4 inputs. */
static void make_tables(const float *x, float *table)
{
    const __m512 one = _mm512_set1_ps(1), minus = _mm512_set1_ps(-1);
    const __m512 a = _mm512_mask_blend_ps(0xaaaa, minus, one);
    const __m512 b = _mm512_mask_blend_ps(0xcccc, minus, one);
    const __m512 c = _mm512_mask_blend_ps(0xf0f0, minus, one);
    const __m512 d = _mm512_mask_blend_ps(0xff00, minus, one);
    int32_t k;
    for (k = 0; k < 8; k++, x += 4, table += 16) {
        __m512 sum = _mm512_mul_ps(a, _mm512_set1_ps(x[0]));
        __m512 more = _mm512_mul_ps(c, _mm512_set1_ps(x[2]));
        sum = _mm512_fmadd_ps(b, _mm512_set1_ps(x[1]), sum);
        more = _mm512_fmadd_ps(d, _mm512_set1_ps(x[3]), more);
        _mm512_storeu_ps(table, _mm512_add_ps(sum, more));
    }
}

/* Add to 16 sums; `words` is how many words every output has. */
static void look_up(const uint32_t *bits, int32_t words, const float *table, float *sums)
{
    __m512 s0 = _mm512_loadu_ps(sums), s1 = _mm512_setzero_ps();
    __m512 s2 = _mm512_setzero_ps(), s3 = _mm512_setzero_ps();
    for (; words > 0; words--, bits += 16, table += TABLE_FLOATS) {
        const __m512i word = _mm512_loadu_si512(bits);
/* Of an index the permutation reads the 4 lowest bits only. */
#define LOOK_UP(sum, k)                                                                   \
    sum = _mm512_add_ps(sum, _mm512_permutexvar_ps(_mm512_srli_epi32(word, 4 * (k)),      \
                                                   _mm512_loadu_ps(table + 16 * (k))))
        LOOK_UP(s0, 0);
        LOOK_UP(s1, 1);
        LOOK_UP(s2, 2);
        LOOK_UP(s3, 3);
        LOOK_UP(s0, 4);
        LOOK_UP(s1, 5);
        LOOK_UP(s2, 6);
        LOOK_UP(s3, 7);
#undef LOOK_UP
    }
    _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
}

#elif defined(__AVX2__)

/* 11 tables of 8 sums of 3 inputs; the last has 2, whose third bit is never set. */
static void make_tables(const float *x, float *table)
{
    const __m256 a = _mm256_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1);
    const __m256 b = _mm256_setr_ps(-1, -1, 1, 1, -1, -1, 1, 1);
    const __m256 c = _mm256_setr_ps(-1, -1, -1, -1, 1, 1, 1, 1);
    int32_t k;
    for (k = 0; k < 11; k++, x += 3, table += 8) {
        const __m256 first = _mm256_mul_ps(a, _mm256_set1_ps(x[0]));
        __m256 sum = _mm256_add_ps(first, _mm256_mul_ps(b, _mm256_set1_ps(x[1])));
        if (k < 10)
            sum = _mm256_add_ps(sum, _mm256_mul_ps(c, _mm256_set1_ps(x[2])));
        _mm256_storeu_ps(table, sum);
    }
}

static void look_up(const uint32_t *bits, int32_t words, const float *table, float *sums)
{
    __m256 s0 = _mm256_loadu_ps(sums), s1 = _mm256_loadu_ps(sums + 8);
    __m256 s2 = _mm256_setzero_ps(), s3 = _mm256_setzero_ps();
    for (; words > 0; words--, bits += 16, table += TABLE_FLOATS) {
        const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)bits);
        const __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(bits + 8));
/* Of an index the permutation reads the 3 lowest bits only. */
#define LOOK_UP(sum, word, k)                                                             \
    sum = _mm256_add_ps(sum, _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8 * (k)),   \
                                                      _mm256_srli_epi32(word, 3 * (k))))
#define LOOK_UP_TWO(k)                                                                    \
    LOOK_UP(s0, low, k);                                                                  \
    LOOK_UP(s1, high, k);                                                                 \
    LOOK_UP(s2, low, (k) + 1);                                                            \
    LOOK_UP(s3, high, (k) + 1)
        LOOK_UP_TWO(0);
        LOOK_UP_TWO(2);
        LOOK_UP_TWO(4);
        LOOK_UP_TWO(6);
        LOOK_UP_TWO(8);
        LOOK_UP(s0, low, 10);
        LOOK_UP(s1, high, 10);
#undef LOOK_UP_TWO
#undef LOOK_UP
    }
    _mm256_storeu_ps(sums, _mm256_add_ps(s0, s2));
    _mm256_storeu_ps(sums + 8, _mm256_add_ps(s1, s3));
}

#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(__ARM_BIG_ENDIAN)

/* 11 tables of 8 sums of 3 inputs; the last has 2, whose third bit is never set. */
static void make_tables(const float *x, float *table)
{
    static const float signs[8] = {-1, 1, -1, 1, -1, -1, 1, 1};
    const float32x4_t a = vld1q_f32(signs), b = vld1q_f32(signs + 4);
    int32_t k;
    for (k = 0; k < 11; k++, x += 3, table += 8) {
        const float32x4_t sum = vaddq_f32(vmulq_n_f32(a, x[0]), vmulq_n_f32(b, x[1]));
        const float32x4_t third = vdupq_n_f32(k < 10 ? x[2] : 0);
        vst1q_f32(table, vsubq_f32(sum, third));
        vst1q_f32(table + 4, vaddq_f32(sum, third));
    }
}

static void look_up(const uint32_t *bits, int32_t words, const float *table, float *sums)
{
    float32x4_t sum[4];
    int32_t i, k;
    for (i = 0; i < 4; i++)
        sum[i] = vld1q_f32(sums + 4 * i);
    for (; words > 0; words--, bits += 16, table += TABLE_FLOATS) {
        uint32x4_t word[4];
        for (i = 0; i < 4; i++)
            word[i] = vld1q_u32(bits + 4 * i);
        for (k = 0; k < 11; k++) {
            uint8x16x2_t entries;
            entries.val[0] = vreinterpretq_u8_f32(vld1q_f32(table + 8 * k));
            entries.val[1] = vreinterpretq_u8_f32(vld1q_f32(table + 8 * k + 4));
            for (i = 0; i < 4; i++) {
                /* The 4 bytes of entry n are 4 n to 4 n + 3. */
                const uint32x4_t entry = vandq_u32(word[i], vdupq_n_u32(7));
                const uint32x4_t place =
                    vmlaq_u32(vdupq_n_u32(0x03020100), entry, vdupq_n_u32(0x04040404));
                const uint8x16_t found = vqtbl2q_u8(entries, vreinterpretq_u8_u32(place));
                sum[i] = vaddq_f32(sum[i], vreinterpretq_f32_u8(found));
                word[i] = vshrq_n_u32(word[i], 3);
            }
        }
    }
    for (i = 0; i < 4; i++)
        vst1q_f32(sums + 4 * i, sum[i]);
}

#else

/* 8 tables of 16 sums of 4 inputs. */
static void make_tables(const float *x, float *table)
{
    int32_t k, i;
    for (k = 0; k < 8; k++, x += 4, table += 16) {
        const float sum = x[0] + x[1], difference = x[0] - x[1];
        const float more = x[2] + x[3], less = x[2] - x[3];
        const float low[4] = {-sum, difference, -difference, sum};
        for (i = 0; i < 4; i++) {
            table[i] = low[i] - more;
            table[4 + i] = low[i] + less;
            table[8 + i] = low[i] - less;
            table[12 + i] = low[i] + more;
        }
    }
}

static void look_up(const uint32_t *bits, int32_t words, const float *tables, float *sums)
{
    int32_t o, k;
    for (o = 0; o < 16; o++) {
        const float *table = tables;
        float even = 0, odd = 0;
        for (k = 0; k < words; k++, table += TABLE_FLOATS) {
            const uint32_t word = bits[16 * k + o];
            even += (table[word & 15] + table[32 + (word >> 8 & 15)]) +
                    (table[64 + (word >> 16 & 15)] + table[96 + (word >> 24 & 15)]);
            odd += (table[16 + (word >> 4 & 15)] + table[48 + (word >> 12 & 15)]) +
                   (table[80 + (word >> 20 & 15)] + table[112 + (word >> 28)]);
        }
        sums[o] += even + odd;
    }
}

#endif

/* `work`: 2,048 floats of tables, and the outputs rounded up to 16. */
static void dense_bits(const struct dense_bits *op, const float *in, float *out, float *work)
{
    float *const tables = work, *const sums = work + INPUTS_AT_ONCE / 32 * TABLE_FLOATS;
    const uint32_t *bits = op->bits;
    int32_t start, o, i, k;
    for (o = 0; o < (op->outputs + 15) / 16 * 16; o++)
        sums[o] = 0;
    for (start = 0; start < op->inputs; start += INPUTS_AT_ONCE) {
        const int32_t left = op->inputs - start;
        const int32_t inputs = left < INPUTS_AT_ONCE ? left : INPUTS_AT_ONCE;
        const int32_t words = (inputs + 31) / 32;
        for (k = 0; k < inputs / 32; k++)
            make_tables(in + start + 32 * k, tables + k * TABLE_FLOATS);
        if (k < words) {
            float last[32];
            for (i = 0; i < 32; i++)
                last[i] = 32 * k + i < inputs ? in[start + 32 * k + i] : 0;
            make_tables(last, tables + k * TABLE_FLOATS);
        }
        for (o = 0; o < op->outputs; o += 16, bits += 16 * words)
            look_up(bits, words, tables, sums + o);
    }
    for (o = 0; o < op->outputs; o++)
        out[o] = finished(sums[o], &op->finish, o);
}
