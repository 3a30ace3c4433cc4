/* A picture, its channels side by side, as one plane of floats per channel. */
struct pixels {
    int32_t channels, area;
    struct finish finish;
};

static void pixels(const struct pixels *op, const uint8_t *image, float *out)
{
    int32_t channel, i;
    for (channel = 0; channel < op->channels; channel++)
        for (i = 0; i < op->area; i++)
            *out++ = finished(image[i * op->channels + channel], &op->finish, channel);
}
