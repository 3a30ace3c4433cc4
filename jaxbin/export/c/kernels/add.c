struct add {
    int32_t channels, area;
    struct finish finish;
};

/* `out` may be `a`. */
static void add(const struct add *op, const float *a, const float *b, float *out)
{
    int32_t channel, i;
    for (channel = 0; channel < op->channels; channel++) {
        const int32_t start = channel * op->area;
        for (i = start; i < start + op->area; i++)
            out[i] = a[i] + b[i];
        finish_channel(out + start, out + start, op->area, &op->finish, channel);
    }
}
