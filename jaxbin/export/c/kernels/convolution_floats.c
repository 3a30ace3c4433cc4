/* `work`: a window, and the sums of the channels of a group.
   Weights: of a group's input channels in turn, of the phases in turn, of each of its outputs. */
static void convolution_floats(const struct convolution *op, const float *in, float *out,
                               float *work)
{
    const struct window window = window_of(op);
    const int32_t inputs = op->channels / op->groups, outputs = op->out_channels / op->groups;
    const int32_t row_phases = at_most(op->kernel_height, op->row_step);
    const int32_t column_phases = at_most(op->kernel_width, op->column_step);
    const int32_t area = op->height * op->width;
    float *const sums = work + window.length;
    int32_t first, group, channel, row_phase, column_phase, o, row, column, i;
    for (first = 0; first < op->out_height; first += op->rows) {
        const float *weights = op->weights;
        for (group = 0; group < op->groups; group++) {
            for (i = 0; i < outputs * window.sums; i++)
                sums[i] = 0;
            for (channel = group * inputs; channel < (group + 1) * inputs; channel++)
                for (row_phase = 0; row_phase < row_phases; row_phase++)
                    for (column_phase = 0; column_phase < column_phases; column_phase++) {
                        fill_window(op, &window, in + channel * area, first, row_phase,
                                    column_phase, work);
                        for (o = 0; o < outputs; o++) {
                            float *const sum = sums + o * window.sums;
                            for (row = row_phase; row < op->kernel_height; row += op->row_step)
                                for (column = column_phase; column < op->kernel_width;
                                     column += op->column_step) {
                                    const float *const line = work +
                                                              row / op->row_step * window.pitch +
                                                              column / op->column_step;
                                    const float weight = *weights++;
                                    for (i = 0; i < window.sums; i++)
                                        sum[i] += weight * line[i];
                                }
                        }
                    }
            for (o = 0; o < outputs; o++)
                finish_rows(op, &window, sums + o * window.sums, first, group * outputs + o, out);
        }
    }
}
