struct affine {
    int32_t channels, area;
    struct finish finish;
};

/* `out` may be `in`. */
static void affine(const struct affine *op, const float *in, float *out)
{
    int32_t channel;
    for (channel = 0; channel < op->channels; channel++)
        finish_channel(in + channel * op->area, out + channel * op->area, op->area, &op->finish,
                       channel);
}
