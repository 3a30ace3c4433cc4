/* Every so many elements of each axis from a start on, zero where there is none. */
struct take {
    int32_t channels, height, width; /* of the input */
    int32_t out_channels, out_height, out_width;
    int32_t first_channel, first_row, first_column;
    int32_t channel_step, row_step, column_step;
};

static void take(const struct take *op, const float *in, float *out)
{
    int32_t i, j, k;
    for (i = 0; i < op->out_channels; i++) {
        const int32_t channel = op->first_channel + i * op->channel_step;
        for (j = 0; j < op->out_height; j++) {
            const int32_t row = op->first_row + j * op->row_step;
            const float *line;
            /* Not one condition with the column's: gcc 12 vectorizes that wrongly. */
            if (channel < 0 || channel >= op->channels || row < 0 || row >= op->height) {
                for (k = 0; k < op->out_width; k++)
                    *out++ = 0;
                continue;
            }
            line = in + (channel * op->height + row) * op->width;
            for (k = 0; k < op->out_width; k++) {
                const int32_t column = op->first_column + k * op->column_step;
                *out++ = column >= 0 && column < op->width ? line[column] : 0;
            }
        }
    }
}
