static void finish_channel(const float *sums, float *out, int32_t n, const struct finish *finish,
                           int32_t channel)
{
    const float scale = finish->scale ? finish->scale[channel] : 1;
    const float shift = finish->shift ? finish->shift[channel] : 0;
    int32_t i;
    if (finish->relu)
        for (i = 0; i < n; i++) {
            const float sum = sums[i] * scale + shift;
            out[i] = sum < 0 ? 0 : sum;
        }
    else
        for (i = 0; i < n; i++)
            out[i] = sums[i] * scale + shift;
}
