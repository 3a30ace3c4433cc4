/* What the kernel for AVX-512 uses of it, in plain C, after Intel's descriptions: for processors that
   have none. */
#include <stdint.h>
#include <string.h>

typedef struct {
    float lane[16];
} __m512;
typedef struct {
    uint32_t lane[16];
} __m512i;

#define FOR_LANES(type, expression)  \
    type result;                     \
    int i;                           \
    for (i = 0; i < 16; i++)         \
        result.lane[i] = expression; \
    return result

static inline __m512 _mm512_set1_ps(float a) { FOR_LANES(__m512, a); }
static inline __m512 _mm512_setzero_ps(void) { FOR_LANES(__m512, 0); }
static inline __m512 _mm512_add_ps(__m512 a, __m512 b) { FOR_LANES(__m512, a.lane[i] + b.lane[i]); }
static inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { FOR_LANES(__m512, a.lane[i] * b.lane[i]); }
static inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c)
{
    FOR_LANES(__m512, a.lane[i] * b.lane[i] + c.lane[i]);
}
static inline __m512 _mm512_mask_blend_ps(uint16_t mask, __m512 a, __m512 b)
{
    FOR_LANES(__m512, mask >> i & 1 ? b.lane[i] : a.lane[i]);
}
static inline __m512 _mm512_permutexvar_ps(__m512i index, __m512 a)
{
    FOR_LANES(__m512, a.lane[index.lane[i] & 15]);
}
static inline __m512i _mm512_srli_epi32(__m512i a, unsigned count)
{
    FOR_LANES(__m512i, a.lane[i] >> count);
}
static inline __m512 _mm512_loadu_ps(const void *from)
{
    __m512 result;
    memcpy(&result, from, sizeof result);
    return result;
}
static inline __m512i _mm512_loadu_si512(const void *from)
{
    __m512i result;
    memcpy(&result, from, sizeof result);
    return result;
}
static inline void _mm512_storeu_ps(void *to, __m512 a) { memcpy(to, &a, sizeof a); }
