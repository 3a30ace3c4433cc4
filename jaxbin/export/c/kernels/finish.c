/* What becomes of a sum: scale and shift of its channel, ReLU. */
struct finish {
    const float *scale; /* per channel; absent: 1 */
    const float *shift; /* per channel; absent: 0 */
    int32_t relu;
};

static float finished(float sum, const struct finish *finish, int32_t channel)
{
    if (finish->scale)
        sum *= finish->scale[channel];
    if (finish->shift)
        sum += finish->shift[channel];
    return finish->relu && sum < 0 ? 0 : sum;
}
