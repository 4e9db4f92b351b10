/* The commit of a step or of a settling pass for one instruction set, SA_SET: `Restarting.update`
 * and `.decide`, the reduction of frames to rows before them and the transaction of the bank after
 * them, for all layers of all rows; and what a settling pass makes of one layer. The Python code is
 * the specification and explains what is done; names are the same here.
 */

#include "vectors.h"

#include <math.h>
#include <stdlib.h>

enum { SETTLING, FOLLOWING, RESTING };

/* As in `estimators/restarting.py` and `ops/reduce/reference.py`. */
static const double LONGEST_FRAME = 1.0, SHORTEST_FRAME = 1e-3;
static const double TRUSTED_SIGMAS = 8.0, LEAST_LOG = -7.0, MOST_LOG = 4.0;
static const double LARGEST = 100.0, TINY = 1e-150;
static const double LEVEL_HALF_LIFE = 128.0, KNOWN_AFTER = 192.0, LEARNED_AFTER = 16.0;
static const double SLACK = 2.0, PATIENCE = 8.0, NEARER = 2.0, NEARER_SLACK = 0.1;
static const double LARGEST_RATIO = 6.0, LEAST_SHARE = 0.4;
static const double ENOUGH_FRAMES = 4.0, USUAL = 3.0;
static const double LEAST_SETTLING_FRAMES = 16.0, CLEAR = 1.5;
static const double OWN_MATERIAL = 2.25, LEAST_OWN_MATERIAL = 0.2, LEAST_REST_SHARE = 0.125;
static const float FURTHEST = 1e15f, FLOOR = 1e-30f;

static double least(double a, double b) { return a < b ? a : b; }
static double most(double a, double b) { return a > b ? a : b; }
static double within(double x, double low, double high) { return least(most(x, low), high); }

typedef struct {
    const sa_commit *c;
    uint8_t *finite;    /* [batch] */
    double *distances;  /* [batch] */
    double *share;      /* [batch] */
    double *sorted;     /* [batch] */
    float *centre;      /* [channels] */
    float *precision;
    double *aside_mean; /* [channels], new */
    double *aside_var;
    double *mean;
    double *var;
} work;

static int row_of(const sa_commit *c, int64_t frame) {
    int64_t best = 0;
    for (int64_t r = 1; r < c->row_count; r++)
        if (c->weights[r * c->batch + frame] > c->weights[best * c->batch + frame]) best = r;
    return (int)best;
}

/* A value that is not finite makes the sum so; in double nothing else does. */
static void find_finite(const work *w) {
    const sa_commit *c = w->c;
    for (int64_t f = 0; f < c->batch; f++) {
        double part[8] = {0};
        const double *mean = c->mean + f * c->channels, *var = c->var + f * c->channels;
        for (int64_t i = 0; i < c->channels; i += 8) /* padded to 32 */
            for (int k = 0; k < 8; k++) part[k] += mean[i + k] + var[i + k];
        double total = 0.0;
        for (int k = 0; k < 8; k++) total += part[k];
        w->finite[f] = total * 0.0 == 0.0;
    }
}

/* Location-scale distance of a frame from its row, mean over layers; in fp32. */
static double frame_distance(const work *w, int64_t frame) {
    const sa_commit *c = w->c;
    const double *mean = c->mean + frame * c->channels, *var = c->var + frame * c->channels;
    double total = 0.0;
    const f16 largest = spread((float)LARGEST), far = spread(FURTHEST), near = spread(1.0f / FURTHEST);
    for (int64_t l = 0; l < c->layers; l++) {
        float floor = (float)(c->eps[l] + (double)FLOOR);
        double sum = 0.0;
        for (int64_t i = c->starts[l], end = i + c->sizes[l]; i < end; i += SA_LANES) {
            float ratios[SA_LANES], offsets[SA_LANES];
            for (int k = 0; k < SA_LANES; k++) { /* padding is there to be read */
                ratios[k] = ((float)var[i + k] + floor) * w->precision[i + k];
                offsets[k] = ((float)mean[i + k] - w->centre[i + k]) * sqrtf(w->precision[i + k]);
            }
            f16 ratio = clamped(load(ratios), near, far), log = log16(ratio);
            f16 offset = clamped(load(offsets), spread(-FURTHEST), far);
            float root[SA_LANES];
            for (int k = 0; k < SA_LANES; k++) root[k] = 1.0f / sqrtf(ratio[k]);
            f16 apart = clamped(offset * offset * load(root) + 0.5f * log * log, near - near, largest);
            int64_t here = end - i < SA_LANES ? end - i : SA_LANES;
            for (int k = 0; k < here; k++) sum += (double)apart[k];
        }
        total += sum / (double)c->sizes[l];
    }
    return total / (double)c->layers;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Outlying frames count less; see `frame_trust`. */
static void find_trust(const work *w) {
    const sa_commit *c = w->c;
    for (int64_t f = 0; f < c->batch; f++) c->trust[f] = 1.0;
    for (int64_t r = 0; r < c->row_count; r++) {
        const double *weights = c->weights + r * c->batch;
        const float *held = c->data + c->rows[r] * 4 * c->channels;
        int64_t members = 0;
        for (int64_t f = 0; f < c->batch; f++) members += weights[f] > 0.0;
        if ((double)members < ENOUGH_FRAMES) continue;
        for (int64_t l = 0; l < c->layers; l++) {
            float floor = (float)(c->eps[l] + (double)FLOOR);
            int64_t end = l + 1 < c->layers ? c->starts[l + 1] : c->channels;
            for (int64_t i = c->starts[l]; i < end; i++) {
                w->centre[i] = held[i];
                w->precision[i] = 1.0f / (held[c->channels + i] + floor);
            }
        }
        int64_t present = 0;
        for (int64_t f = 0; f < c->batch; f++) {
            if (weights[f] <= 0.0 || !w->finite[f] || row_of(c, f) != r) continue;
            w->distances[f] = frame_distance(w, f);
            if (w->distances[f] == w->distances[f]) w->sorted[present++] = w->distances[f];
        }
        if ((double)present < ENOUGH_FRAMES) continue;
        qsort(w->sorted, (size_t)present, sizeof *w->sorted, ascending);
        double limit = USUAL * w->sorted[(present - 1) / 2];
        for (int64_t f = 0; f < c->batch; f++) {
            if (weights[f] <= 0.0 || !w->finite[f] || row_of(c, f) != r) continue;
            double trust = within(2.0 - w->distances[f] / most(limit, 1e-150), 0.0, 1.0);
            if (w->distances[f] == w->distances[f] && trust == trust) c->trust[f] = trust;
        }
    }
}

/* Frames of a row to one mean and variance. */
static double pool(const work *w, int64_t r) {
    const sa_commit *c = w->c;
    double frames = 0.0, total = 0.0;
    for (int64_t f = 0; f < c->batch; f++) {
        double weight = w->finite[f] ? c->weights[r * c->batch + f] : 0.0;
        frames += weight;
        w->share[f] = weight * c->trust[f];
        total += w->share[f];
    }
    double *mean = c->pooled_mean + r * c->channels, *var = c->pooled_var + r * c->channels;
    for (int64_t i = 0; i < c->channels; i++) mean[i] = var[i] = 0.0;
    for (int64_t f = 0; f < c->batch; f++) {
        w->share[f] /= most(total, 1e-300);
        if (w->share[f] == 0.0) continue;
        const double share = w->share[f], *from = c->mean + f * c->channels;
        for (int64_t i = 0; i < c->channels; i++) mean[i] += share * from[i];
    }
    for (int64_t f = 0; f < c->batch; f++) {
        if (w->share[f] == 0.0) continue;
        const double share = w->share[f], *from = c->mean + f * c->channels;
        const double *spread_of = c->var + f * c->channels;
        for (int64_t i = 0; i < c->channels; i++) {
            double d = from[i] - mean[i];
            var[i] += share * (spread_of[i] + d * d);
        }
    }
    return frames;
}

/* Of two sets of statistics, mean over the watched layers. `b` is in fp32. */
static double distance(
    const sa_commit *c, const double *mean, const double *var, const float *b_mean, const float *b_var
) {
    double total = 0.0;
    for (int64_t l = 0; l < c->watched; l++) {
        double eps = c->eps[l] + TINY, sum = 0.0;
        for (int64_t i = c->starts[l], end = i + c->sizes[l]; i < end; i++) {
            double va = var[i] + eps, vb = (double)b_var[i] + eps, d = mean[i] - (double)b_mean[i];
            double ln = log(va / vb), apart = d * d / sqrt(va * vb) + 0.5 * ln * ln;
            sum += apart > LARGEST ? LARGEST : apart;
        }
        total += sum / (double)c->sizes[l];
    }
    return total / (double)c->watched;
}

/* Camera time that frames stand for. */
static double seconds_of(double frames, double elapsed) {
    return most(least(elapsed, frames * LONGEST_FRAME), frames * SHORTEST_FRAME);
}

/* One channel of `Restarting.update` in a settling pass: what was measured so far, `mean` and
 * `var`, moves by `weight` towards what frames show. */
static void settle_channel(
    double source_mean, double source_var, double eps, double weight, double seen_mean,
    double seen_var, double *mean, double *var, double *sum
) {
    static const double LOW = 0.00091188196555451624; /* exp(LEAST_LOG) */
    static const double HIGH = 54.598150033144236;    /* exp(MOST_LOG) */
    double up = source_var + eps, far = TRUSTED_SIGMAS * sqrt(up);
    double floor = source_var * LOW, top = up * HIGH;
    double d = source_mean + within(seen_mean - source_mean, -far, far) - *mean;
    double shown = within(seen_var, floor, top);
    double now = *mean + d * weight;
    double wide = *var + weight * (shown - *var) + d * d * (weight * (1.0 - weight));
    *sum += now + wide; /* limits hide what is not finite */
    *mean = source_mean + within(now - source_mean, -far, far);
    *var = within(wide, floor, top);
}

static int same(const float *one, const float *other, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (one[i] != other[i]) return 0;
    return 1;
}

/* A row in a settling pass. */
static void settle_row(const work *w, int64_t r) {
    const sa_commit *c = w->c;
    int64_t channels = c->channels, row = c->rows[r];
    float *data = c->data + row * 4 * channels;
    const float *source = c->source;
    double *tallies = c->tallies + row * c->width;
    double frames = c->frames[r] = pool(w, r);
    const double *seen_mean = c->pooled_mean + r * channels, *seen_var = c->pooled_var + r * channels;
    double accepted = frames * (c->allowed ? c->allowed[r] : 1.0);
    double old[SA_SCALARS], new[SA_SCALARS];
    for (int k = 0; k < SA_SCALARS; k++) old[k] = new[k] = tallies[c->columns[k]];
    if (old[SA_PHASE] != SETTLING) { /* nothing is changed, and nothing counted again */
        c->verdict[r] = accepted;
        c->phase[r] = old[SA_PHASE];
        return;
    }
    double passed = seconds_of(frames, c->elapsed[r]), sum = 0.0;
    for (int64_t l = 0; l < c->layers; l++) {
        int64_t end = l + 1 < c->layers ? c->starts[l + 1] : channels;
        double memory = c->prior[l] + old[SA_SETTLED_SECONDS], weight = passed / (memory + passed);
        for (int64_t i = c->starts[l]; i < end; i++) {
            w->aside_mean[i] = (double)data[2 * channels + i];
            w->aside_var[i] = (double)data[3 * channels + i];
            if (frames > 0.0)
                settle_channel(
                    (double)source[i], (double)source[channels + i], c->eps[l], weight,
                    seen_mean[i], seen_var[i], w->aside_mean + i, w->aside_var + i, &sum
                );
        }
    }

    double settled = old[SA_SETTLED_FRAMES] + frames, seconds = old[SA_SETTLED_SECONDS] + passed;
    double apart = distance(c, w->aside_mean, w->aside_var, source, source + channels);
    double own = old[SA_MATERIAL], scale = c->material != 0.0 ? own / c->material : 1.0;
    double limit = own + scale * c->noise / most(settled, 1.0);
    int insists = old[SA_INSISTS] > 0.0;
    int doubtful = apart > limit / CLEAR && apart <= CLEAR * limit && !insists;
    double wait = c->settling_seconds + (doubtful ? c->longer : 0.0);
    int ended = settled >= LEAST_SETTLING_FRAMES && seconds >= wait * (1.0 - 1e-9);
    int moved = apart > limit && (!doubtful || ended), done = ended;
    if (c->healthy && c->healthy[r] == 0.0) {
        moved = insists = 0;
        done = 1;
    }
    int material = moved || insists;
    new[SA_SETTLED_FRAMES] = settled;
    new[SA_SETTLED_SECONDS] = seconds;
    if (done) {
        new[SA_PHASE] = material ? FOLLOWING : RESTING;
        new[SA_INSISTS] = (double)(insists && !moved);
        new[SA_RECENT] = c->level;
        new[SA_PENDING_FRAMES] = new[SA_PENDING_SECONDS] = new[SA_BLOCKS] = new[SA_EXCESS] = 0.0;
    }
    if (done && !material && apart <= limit) {
        double found = within(OWN_MATERIAL * apart, LEAST_OWN_MATERIAL * c->material, c->material);
        double share = most(1.0 / (old[SA_RESTS] + 1.0), LEAST_REST_SHARE);
        new[SA_MATERIAL] = own * pow(found / most(own, TINY), share);
        new[SA_RESTS] = old[SA_RESTS] + 1.0;
    }

    double total = sum;
    for (int k = 0; k < SA_SCALARS; k++) total += new[k];
    for (int64_t i = 0; i < channels; i++)
        total += (double)(float)w->aside_mean[i] + (double)(float)w->aside_var[i];
    int finite = total * 0.0 == 0.0;
    c->verdict[r] = finite ? accepted : -accepted;
    if (!finite || !(accepted > 0.0)) {
        c->phase[r] = old[SA_PHASE];
        return;
    }
    for (int k = 0; k < SA_SCALARS; k++) tallies[c->columns[k]] = new[k];
    c->phase[r] = new[SA_PHASE];
    for (int64_t i = 0; i < channels; i++) {
        data[2 * channels + i] = (float)w->aside_mean[i];
        data[3 * channels + i] = (float)(w->aside_var[i] < 0.0 ? 0.0 : w->aside_var[i]);
    }
    memcpy(data, material ? data + 2 * channels : source, 2 * (size_t)channels * sizeof(float));
}

static void commit_row(const work *w, int64_t r) {
    const sa_commit *c = w->c;
    int64_t channels = c->channels, row = c->rows[r];
    float *data = c->data + row * 4 * channels;
    const float *held_mean = data, *held_var = data + channels;
    const float *source_mean = c->source, *source_var = c->source + channels;
    double *tallies = c->tallies + row * c->width;
    double frames = c->frames[r] = pool(w, r);
    const double *seen_mean = c->pooled_mean + r * channels, *seen_var = c->pooled_var + r * channels;
    double accepted = frames * (c->allowed ? c->allowed[r] : 1.0);
    double old[SA_SCALARS], new[SA_SCALARS];
    for (int k = 0; k < SA_SCALARS; k++) old[k] = new[k] = tallies[c->columns[k]];
    int settling = old[SA_PHASE] == SETTLING, following = old[SA_PHASE] == FOLLOWING;

    double passed = seconds_of(frames, c->elapsed[r]);
    double pending = old[SA_PENDING_FRAMES] + frames, seconds = old[SA_PENDING_SECONDS] + passed;
    int whole = pending >= c->block_frames && seconds >= c->block_seconds * (1.0 - 1e-9);
    int ready = !settling && whole, moves = following && whole;

    /* The block under way together with these frames. */
    double weight = frames / (pending > 0.0 ? pending : 1.0);
    for (int64_t i = 0; i < channels; i++) {
        double m = (double)data[2 * channels + i], v = (double)data[3 * channels + i];
        double d = seen_mean[i] - m;
        w->aside_mean[i] = m + d * weight;
        w->aside_var[i] = v + weight * (seen_var[i] - v) + d * d * (weight * (1.0 - weight));
    }
    if (moves) {
        double factor = exp(least(2.0 * c->clip, 600.0));
        double low = exp(LEAST_LOG), high = exp(MOST_LOG);
        for (int64_t l = 0; l < c->layers; l++) {
            int64_t end = l + 1 < c->layers ? c->starts[l + 1] : channels;
            double share = least(seconds / (c->memory[l] + seconds), c->max_weight), eps = c->eps[l];
            for (int64_t i = c->starts[l]; i < end; i++) {
                double m = (double)held_mean[i], v = (double)held_var[i], up = v + eps;
                double reach = c->clip * sqrt(up), d = within(w->aside_mean[i] - m, -reach, reach);
                double shown = within(w->aside_var[i], v / factor, up * factor);
                double mean = m + d * share;
                double var = v + share * (shown - v) + d * d * (share * (1.0 - share));
                double sm = (double)source_mean[i], sv = (double)source_var[i], su = sv + eps;
                double far = TRUSTED_SIGMAS * sqrt(su);
                w->mean[i] = sm + within(mean - sm, -far, far);
                w->var[i] = within(var, sv * low, su * high);
            }
        }
    }

    int alarm = 0, back = 0;
    if (!ready) {
        new[SA_PENDING_FRAMES] = settling ? 0.0 : pending;
        new[SA_PENDING_SECONDS] = settling ? 0.0 : seconds;
    } else {
        double innovation = distance(c, w->aside_mean, w->aside_var, held_mean, held_var);
        double level = old[SA_LEVEL], blocks = old[SA_BLOCKS], ratio = innovation / level;
        double excess = most(old[SA_EXCESS] + least(ratio, LARGEST_RATIO) - SLACK, 0.0);
        double nearer = 0.0;
        int near = 0;
        if (following) {
            double from_source = distance(c, w->aside_mean, w->aside_var, source_mean, source_var);
            nearer = old[SA_NEARER] + (innovation - from_source) / level - NEARER_SLACK;
            nearer = most(nearer, 0.0);
            near = distance(c, w->mean, w->var, source_mean, source_var) < old[SA_MATERIAL];
        }
        alarm = ratio > c->alarm || excess > PATIENCE || nearer > NEARER;
        int insists = !following && blocks >= 2.0 && old[SA_SETTLED_FRAMES] >= KNOWN_AFTER &&
                      old[SA_RECENT] > c->unlike && same(held_mean, source_mean, channels) &&
                      same(held_var, source_var, channels);
        alarm = alarm || insists;

        int learns = following || blocks < LEARNED_AFTER;
        double share = most(1.0 - exp2(-pending / LEVEL_HALF_LIFE), 1.0 / (blocks + 2.0));
        double step = least(most(ratio, 0.25), blocks > 1.0 ? 2.0 : 9.0);
        double moved = level * pow(step, share);
        int mistaken = blocks == 0.0 && ratio > c->alarm;
        double afresh = mistaken ? level * sqrt(ratio) : c->level;
        double floor = LEAST_SHARE * c->level;
        double learned = most(learns ? moved : level, floor);
        double recent = old[SA_RECENT];
        double drifted = recent * pow(within(innovation / recent, 0.25, 4.0), share);
        drifted = learns ? learned : most(drifted, floor);

        back = following && near && old[SA_INSISTS] == 0.0;
        int start = alarm || back;
        new[SA_PHASE] = alarm ? SETTLING : back ? RESTING : old[SA_PHASE];
        new[SA_SETTLED_FRAMES] = alarm ? 0.0 : old[SA_SETTLED_FRAMES] + pending;
        new[SA_SETTLED_SECONDS] = alarm ? 0.0 : old[SA_SETTLED_SECONDS] + seconds;
        new[SA_PENDING_FRAMES] = new[SA_PENDING_SECONDS] = 0.0;
        new[SA_LEVEL] = start ? afresh : learned;
        new[SA_RECENT] = back ? c->level : drifted;
        new[SA_BLOCKS] = start ? 0.0 : blocks + 1.0;
        new[SA_EXCESS] = start ? 0.0 : excess;
        new[SA_NEARER] = start ? 0.0 : nearer;
        new[SA_INSISTS] = start ? (double)insists : old[SA_INSISTS];
        if (innovation != innovation) new[SA_LEVEL] = NAN; /* nothing above may hide it */
    }

    /* Whole, finite, and all layers at once; or nothing. */
    double total = 0.0;
    for (int k = 0; k < SA_SCALARS; k++) total += new[k];
    double part[8] = {0};
    int to_source = alarm || back;
    for (int64_t i = 0; i < channels; i += 8)
        for (int k = 0; k < 8; k++) {
            part[k] += (double)(float)w->aside_mean[i + k] + (double)(float)w->aside_var[i + k];
            if (moves && !to_source)
                part[k] += (double)(float)w->mean[i + k] + (double)(float)w->var[i + k];
        }
    if (!settling && !alarm)
        for (int k = 0; k < 8; k++) total += part[k];
    int finite = total * 0.0 == 0.0;
    c->verdict[r] = finite ? accepted : -accepted;
    if (!finite || !(accepted > 0.0)) {
        c->phase[r] = old[SA_PHASE];
        return;
    }
    tallies[0] += accepted;
    tallies[1] += 1.0;
    for (int64_t l = 0; l < c->layers; l++) tallies[2 + l] += accepted * c->positions[l];
    for (int k = 0; k < SA_SCALARS; k++) tallies[c->columns[k]] = new[k];
    c->phase[r] = new[SA_PHASE];
    if (to_source) {
        memcpy(data, c->source, 2 * (size_t)channels * sizeof(float));
    } else if (moves) {
        for (int64_t i = 0; i < channels; i++) {
            data[i] = (float)w->mean[i];
            data[channels + i] = (float)(w->var[i] < 0.0 ? 0.0 : w->var[i]);
        }
    }
    if (alarm) {
        memcpy(data + 2 * channels, c->source, 2 * (size_t)channels * sizeof(float));
    } else if (!settling) {
        for (int64_t i = 0; i < channels; i++) {
            data[2 * channels + i] = (float)w->aside_mean[i];
            data[3 * channels + i] = (float)(w->aside_var[i] < 0.0 ? 0.0 : w->aside_var[i]);
        }
    }
}

int NAMED(commit, SA_SET)(const sa_commit *c) {
    size_t channels = (size_t)c->channels, batch = (size_t)c->batch;
    size_t doubles = 3 * batch + 4 * channels;
    double *room = malloc(doubles * sizeof(double) + 2 * channels * sizeof(float) + batch);
    if (!room) return -2;
    work w = {.c = c, .distances = room, .share = room + batch, .sorted = room + 2 * batch};
    w.aside_mean = room + 3 * batch;
    w.aside_var = w.aside_mean + channels;
    w.mean = w.aside_var + channels;
    w.var = w.mean + channels;
    w.centre = (float *)(room + doubles);
    w.precision = w.centre + channels;
    w.finite = (uint8_t *)(w.precision + channels);
    find_finite(&w);
    if (c->settles)
        for (int64_t f = 0; f < c->batch; f++) c->trust[f] = c->given ? c->given[f] : 1.0;
    else
        find_trust(&w);
    for (int64_t r = 0; r < c->row_count; r++) (c->settles ? settle_row : commit_row)(&w, r);
    free(room);
    return 0;
}

/* One layer of one row; `share` is room for the frames'. */
static void propose_row(const sa_proposal *p, int64_t r, const uint8_t *finite, double *share) {
    const float *data = p->data + p->rows[r] * 4 * p->channels;
    const float *held_var = data + p->channels;
    const float *aside_mean = data + 2 * p->channels, *aside_var = data + 3 * p->channels;
    const float *source_var = p->source + p->channels;
    const double *tallies = p->tallies + p->rows[r] * p->width;
    double *mean = p->wanted_mean + r * p->size, *var = p->wanted_var + r * p->size;
    double frames = 0.0, total = 0.0, sum = 0.0;
    for (int64_t f = 0; f < p->batch; f++) {
        double weight = finite[f] ? p->weights[r * p->batch + f] : 0.0;
        frames += weight;
        share[f] = p->trust ? weight * p->trust[f] : weight;
        total += share[f];
    }
    int moves = frames * (p->allowed ? p->allowed[r] : 1.0) > 0.0 && tallies[p->phase] == SETTLING;
    if (moves) {
        for (int64_t i = 0; i < p->size; i++) mean[i] = var[i] = 0.0;
        for (int64_t f = 0; f < p->batch; f++) {
            share[f] /= most(total, 1e-300);
            if (share[f] == 0.0) continue;
            const double *from = p->mean + f * p->stride;
            for (int64_t i = 0; i < p->size; i++) mean[i] += share[f] * from[i];
        }
        for (int64_t f = 0; f < p->batch; f++) {
            if (share[f] == 0.0) continue;
            const double *from = p->mean + f * p->stride, *spread_of = p->var + f * p->stride;
            for (int64_t i = 0; i < p->size; i++) {
                double d = from[i] - mean[i];
                var[i] += share[f] * (spread_of[i] + d * d);
            }
        }
        double passed = seconds_of(frames, p->elapsed[r]);
        double weight = passed / (p->prior + tallies[p->settled_seconds] + passed);
        for (int64_t i = 0; i < p->size; i++) {
            double m = (double)aside_mean[i], v = (double)aside_var[i];
            settle_channel(
                (double)p->source[i], (double)source_var[i], p->eps, weight, mean[i], var[i], &m,
                &v, &sum
            );
            mean[i] = m;
            var[i] = most(v, 0.0);
        }
    }
    if (!moves || sum * 0.0 != 0.0)
        for (int64_t i = 0; i < p->size; i++) {
            mean[i] = (double)data[i];
            var[i] = (double)held_var[i];
        }
    if (!p->scale) return;
    float *scale = p->scale + r * p->table_stride, *shift = p->shift + r * p->table_stride;
    float eps = (float)p->eps;
    for (int64_t i = 0; i < p->size; i++) { /* as tables are filled */
        float inverse = 1.0f / sqrtf((float)var[i] + eps);
        scale[i] = p->gain ? inverse * p->gain[i] : inverse;
        shift[i] = (p->bias ? p->bias[i] : 0.0f) - (float)mean[i] * scale[i];
    }
}

int NAMED(propose, SA_SET)(const sa_proposal *p) {
    size_t batch = (size_t)p->batch;
    double *share = malloc(batch * (sizeof *share + 1));
    if (!share) return -2;
    uint8_t *finite = (uint8_t *)(share + batch);
    for (int64_t f = 0; f < p->batch; f++) {
        const double *mean = p->mean + f * p->stride, *var = p->var + f * p->stride;
        double total = 0.0;
        for (int64_t i = 0; i < p->size; i++) total += mean[i] + var[i];
        finite[f] = total * 0.0 == 0.0;
    }
    for (int64_t r = 0; r < p->row_count; r++) propose_row(p, r, finite, share);
    free(share);
    return 0;
}
