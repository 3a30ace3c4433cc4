/* A convolution walks over its output some rows at a time. What the rows need of a channel is copied
   into a window with the zeros around the image; where it strides, every phase (rows and columns
   that lie a stride apart) has a window of its own. There an output's input at a tap of the kernel is
   always as far away as any other's, so a whole block is one sum of shifted lines; a few sums at the
   right of each row mean nothing and are left out at the end. */
struct convolution {
    int32_t channels, height, width; /* of the input */
    int32_t out_channels, out_height, out_width;
    int32_t kernel_height, kernel_width, row_step, column_step;
    int32_t top, left; /* zeros above and on the left */
    int32_t groups;
    int32_t rows; /* of the output, computed at a time */
    struct finish finish;
    const void *weights;
};

struct window {
    int32_t pitch;  /* floats from row to row */
    int32_t sums;   /* of a channel that are computed at a time, a multiple of 16 */
    int32_t length; /* floats of a window */
};

static struct window window_of(const struct convolution *op)
{
    const int32_t below = (op->kernel_height - 1) / op->row_step;
    const int32_t right = (op->kernel_width - 1) / op->column_step;
    struct window window;
    window.pitch = op->out_width + right;
    window.sums = (op->rows * window.pitch + 15) / 16 * 16;
    window.length = window.sums + (below * window.pitch + right + 15) / 16 * 16;
    return window;
}

/* The window of one channel and phase, from row `first` of the output on; zeros of no channel. */
static void fill_window(const struct convolution *op, const struct window *window,
                        const float *channel, int32_t first, int32_t row_phase,
                        int32_t column_phase, float *out)
{
    const int32_t step = op->column_step, shift = op->left - column_phase;
    const int32_t start = shift > 0 ? (shift + step - 1) / step : 0;
    const int32_t last = op->width - 1 + shift;
    const int32_t rows = window->length / window->pitch;
    int32_t end = last < 0 ? 0 : last / step + 1, row, i, used = 0;
    if (end > window->pitch)
        end = window->pitch;
    for (row = 0; channel && row < rows; row++, used += window->pitch, out += window->pitch) {
        const int32_t y = (first + row) * op->row_step + row_phase - op->top;
        const int32_t origin = y * op->width - shift;
        if (y < 0 || y >= op->height || start >= end) {
            for (i = 0; i < window->pitch; i++)
                out[i] = 0;
            continue;
        }
        for (i = 0; i < start; i++)
            out[i] = 0;
        if (step == 1)
            for (i = start; i < end; i++)
                out[i] = channel[origin + i];
        else
            for (i = start; i < end; i++)
                out[i] = channel[origin + i * step];
        for (i = end; i < window->pitch; i++)
            out[i] = 0;
    }
    for (i = used; i < window->length; i++)
        *out++ = 0;
}

static void finish_rows(const struct convolution *op, const struct window *window,
                        const float *sums, int32_t first, int32_t channel, float *out)
{
    const int32_t left = op->out_height - first, rows = left < op->rows ? left : op->rows;
    int32_t row;
    out += (channel * op->out_height + first) * op->out_width;
    for (row = 0; row < rows; row++)
        finish_channel(sums + row * window->pitch, out + row * op->out_width, op->out_width,
                       &op->finish, channel);
}

static int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }
