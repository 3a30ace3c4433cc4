struct dense_floats {
    int32_t inputs, outputs;
    const float *weights; /* of input 0 for every output, then of input 1 */
    struct finish finish;
};

static void dense_floats(const struct dense_floats *op, const float *in, float *out)
{
    int32_t i, o;
    for (o = 0; o < op->outputs; o++)
        out[o] = 0;
    for (i = 0; i < op->inputs; i++) {
        const float *const weights = op->weights + i * op->outputs;
        const float x = in[i];
        for (o = 0; o < op->outputs; o++)
            out[o] += x * weights[o];
    }
    for (o = 0; o < op->outputs; o++)
        out[o] = finished(out[o], &op->finish, o);
}
