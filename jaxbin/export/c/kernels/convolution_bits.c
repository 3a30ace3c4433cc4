/* What 4 channels can contribute at a place are 16 sums; they are computed once for all outputs and
   all taps of the kernel, each of which then adds the one that its 4 bits look up. */

static void add_1_line(float *restrict sums, const float *const *t, int32_t n)
{
    const float *const a = t[0];
    int32_t i;
    for (i = 0; i < n / 16 * 16; i++)
        sums[i] += a[i];
}

static void add_3_lines(float *restrict sums, const float *const *t, int32_t n)
{
    const float *const a = t[0], *const b = t[1], *const c = t[2];
    int32_t i;
    for (i = 0; i < n / 16 * 16; i++)
        sums[i] += a[i] + b[i] + c[i];
}

static void add_9_lines(float *restrict sums, const float *const *t, int32_t n)
{
    const float *const a = t[0], *const b = t[1], *const c = t[2], *const d = t[3];
    const float *const e = t[4], *const f = t[5], *const g = t[6], *const h = t[7];
    const float *const j = t[8];
    int32_t i;
    for (i = 0; i < n / 16 * 16; i++)
        sums[i] += ((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + (g[i] + h[i])) + j[i];
}

static void add_lines(const float *a, const float *b, float *restrict out, int32_t n)
{
    int32_t i;
    for (i = 0; i < n / 16 * 16; i++)
        out[i] = a[i] + b[i];
}

static void combine(const float *a, const float *b, float sign_a, float sign_b,
                    float *restrict out, int32_t n)
{
    int32_t i;
    for (i = 0; i < n / 16 * 16; i++)
        out[i] = sign_a * a[i] + sign_b * b[i];
}

/* Of 4 windows, the 16 tables after `pairs`, which has room for 8 windows. */
static void make_sums(const float *windows, float *pairs, int32_t n)
{
    float *const tables = pairs + 8 * n;
    int32_t i;
    for (i = 0; i < 4; i++) {
        const float low = i & 1 ? 1.0f : -1.0f, high = i & 2 ? 1.0f : -1.0f;
        combine(windows, windows + n, low, high, pairs + i * n, n);
        combine(windows + 2 * n, windows + 3 * n, low, high, pairs + (4 + i) * n, n);
    }
    for (i = 0; i < 16; i++)
        add_lines(pairs + (i & 3) * n, pairs + (4 + (i >> 2)) * n, tables + i * n, n);
}

/* Add to the sums of one output; its bits lie `half` bytes apart. Returns after how many taps. */
static void add_taps(float *sums, int32_t n, const float *tables, int32_t length,
                     const int32_t *shifts, int32_t taps, const uint8_t *bits, int32_t half,
                     int32_t high)
{
    const float *t[9];
    int32_t tap = 0, i;
    while (tap < taps) {
        const int32_t count = taps - tap >= 9 ? 9 : taps - tap >= 3 ? 3 : 1;
        for (i = 0; i < count; i++) {
            const int32_t entry = bits[(tap + i) * half] >> high & 15;
            t[i] = tables + entry * length + shifts[tap + i];
        }
        if (count == 9)
            add_9_lines(sums, t, n);
        else if (count == 3)
            add_3_lines(sums, t, n);
        else
            add_1_line(sums, t, n);
        tap += count;
    }
}

/* `work`: 28 windows, and the sums of the channels of a group.
   Bits: of 4 input channels at a time, of the phases in turn, of the taps of a phase in turn, 4 of
   each output; of two outputs in a byte the second has the upper 4. */
static void convolution_bits(const struct convolution *op, const float *in, float *out, float *work)
{
    const struct window window = window_of(op);
    const int32_t inputs = op->channels / op->groups, outputs = op->out_channels / op->groups;
    const int32_t row_phases = at_most(op->kernel_height, op->row_step);
    const int32_t column_phases = at_most(op->kernel_width, op->column_step);
    const int32_t length = window.length, half = (outputs + 1) / 2;
    float *const sums = work + 28 * length;
    int32_t first, group, channel, phase, o, row, column, i;
    for (first = 0; first < op->out_height; first += op->rows) {
        const uint8_t *bits = op->weights;
        for (group = 0; group < op->groups; group++) {
            const float *const planes = in + group * inputs * op->height * op->width;
            for (i = 0; i < outputs * window.sums; i++)
                sums[i] = 0;
            for (channel = 0; channel < inputs; channel += 4)
                for (phase = 0; phase < row_phases * column_phases; phase++) {
                    const int32_t row_phase = phase / column_phases;
                    const int32_t column_phase = phase % column_phases;
                    int32_t shifts[MOST_TAPS], taps = 0;
                    for (row = row_phase; row < op->kernel_height; row += op->row_step)
                        for (column = column_phase; column < op->kernel_width;
                             column += op->column_step)
                            shifts[taps++] = row / op->row_step * window.pitch +
                                             column / op->column_step;
                    for (i = 0; i < 4; i++) {
                        const float *const plane =
                            channel + i < inputs ? planes + (channel + i) * op->height * op->width
                                                 : 0;
                        fill_window(op, &window, plane, first, row_phase, column_phase,
                                    work + i * length);
                    }
                    make_sums(work, work + 4 * length, length);
                    for (o = 0; o < outputs; o++)
                        add_taps(sums + o * window.sums, window.sums, work + 12 * length, length,
                                 shifts, taps, bits + o / 2, half, o % 2 * 4);
                    bits += taps * half;
                }
            for (o = 0; o < outputs; o++)
                finish_rows(op, &window, sums + o * window.sums, first, group * outputs + o, out);
        }
    }
}
