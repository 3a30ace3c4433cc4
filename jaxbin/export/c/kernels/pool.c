struct pool {
    int32_t channels, height, width; /* of the input */
    int32_t out_height, out_width;
    int32_t window_height, window_width, row_step, column_step;
    int32_t top, left; /* how far the first window lies outside */
    int32_t largest;   /* whether it is the largest that is taken, else the sum */
    struct finish finish;
};

static void pool(const struct pool *op, const float *in, float *out)
{
    int32_t channel, y, x, row, column;
    for (channel = 0; channel < op->channels; channel++, in += op->height * op->width)
        for (y = 0; y < op->out_height; y++, out += op->out_width) {
            const int32_t first_row = y * op->row_step - op->top;
            for (x = 0; x < op->out_width; x++)
                out[x] = op->largest ? -FLT_MAX : 0;
            for (row = first_row; row < first_row + op->window_height; row++) {
                if (row < 0 || row >= op->height)
                    continue;
                for (column = -op->left; column < op->window_width - op->left; column++) {
                    const int32_t step = op->column_step;
                    const int32_t start = column < 0 ? (step - 1 - column) / step : 0;
                    const int32_t last = op->width - 1 - column;
                    const int32_t origin = row * op->width + column;
                    int32_t end = last < 0 ? 0 : last / step + 1;
                    if (end > op->out_width)
                        end = op->out_width;
                    if (op->largest)
                        for (x = start; x < end; x++) {
                            const float value = in[origin + x * step];
                            out[x] = value > out[x] ? value : out[x];
                        }
                    else
                        for (x = start; x < end; x++)
                            out[x] += in[origin + x * step];
                }
            }
            finish_channel(out, out, op->out_width, &op->finish, channel);
        }
}
