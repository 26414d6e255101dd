/* Decodes a region of a baseline JPEG to RGB, bit-identical to libjpeg-turbo (slow integer DCT, smooth upsampling).
 *
 * libjpeg-turbo spends three quarters of its time on the entropy code. This decoder reads a short symbol and its value
 * with one table lookup, decodes blocks outside the region without storing them, and stops at the region's end.
 *
 * It reads only the common kind of photograph: 8 bits, one scan, Huffman, grey or YCbCr with colour at full size, halved
 * across (4:2:2) or halved both ways (4:2:0). It refuses all other files and damaged ones; the caller then uses
 * libjpeg-turbo. It never reads or writes outside the given buffers, for any input bytes.
 *
 * Sources: ITU-T T.81; libjpeg's jidctint.c (Loeffler, Ligtenberg and Moschytz 1989), jdsample.c and jdcolor.c, whose
 * integer arithmetic decides every rounding.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LOOK 11 /* bits of a table's index */
#define MAX_COEFFICIENT 4096 /* dequantized; images stay near 1,024, and larger values might overflow libjpeg's 16 bits */
#define PAD 32 /* zero bytes after the entropy code, which may be read */

typedef int32_t v8 __attribute__((vector_size(32)));
typedef int16_t h8 __attribute__((vector_size(16)));
typedef uint8_t b8 __attribute__((vector_size(8)));

typedef struct {
    uint32_t entry[1 << LOOK]; /* indexed by the next LOOK bits, see `build` */
    int32_t last[17];         /* one past the largest code of each length, left-aligned to 16 bits */
    int32_t shift[17];        /* index of a code's symbol minus the code, by length */
    uint8_t symbol[256];
    int count;
} table;

typedef struct { int id, h, v, quant, dc, ac, width, height; /* in pixels of the component */ } component;

typedef struct {
    int width, height, components, interval, jfif, adobe, defined; /* defined: one bit per quantization table */
    component part[3];
    int32_t quant[4][64] __attribute__((aligned(32))); /* natural order */
    table *tables; /* DC 0..3, AC 0..3 */
} frame;

typedef struct { const uint8_t *at, *end; uint64_t bits; int count; int64_t over; /* bits read past the end */ } reader;

static const uint8_t natural[80] = {
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63 }; /* for indices past the block's end, in damaged files */

/* ---- Huffman tables ---- */

static uint32_t entry_of(int symbol, int length, int is_ac) {
    int size = symbol & 15, run = symbol >> 4, on = is_ac && !size && run < 15 ? 0 : run + 1;
    return (uint32_t)on << 24 | (uint32_t)size << 16 | (uint32_t)length << 8 | (uint32_t)(length + size);
}

/* Builds a table from the 16 counts and the symbols of a DHT segment; 0 if they are invalid. Bytes of an entry, lowest
 * first: bits of code and value; bits of the code; bits of the value; coefficients to advance, the value's own included.
 * The last byte is 0 at the end of a block. The whole entry is 0 for a code of more than LOOK bits. */
static int build(table *t, const uint8_t *counts, const uint8_t *symbols, int is_ac) {
    int total = 0, code = 0, place = 0;
    for (int length = 1; length <= 16; length++) total += counts[length - 1];
    if (total > 256) return 0;
    memcpy(t->symbol, symbols, total);
    t->count = total;
    memset(t->entry, 0, sizeof t->entry);
    for (int length = 1; length <= 16; length++) {
        t->shift[length] = place - code;
        for (int i = 0; i < counts[length - 1]; i++, code++, place++) {
            if (code >= 1 << length || (!is_ac && symbols[place] > 15)) return 0;
            if (length > LOOK) continue;
            uint32_t entry = entry_of(symbols[place], length, is_ac), *first = t->entry + (code << (LOOK - length));
            for (int tail = 0; tail < 1 << (LOOK - length); tail++) first[tail] = entry;
        }
        t->last[length] = code << (16 - length);
        code <<= 1;
    }
    return 1;
}

/* ---- Bits ---- */

/* Functions take and return a reader by value, so that the compiler keeps it in registers. */
static inline __attribute__((always_inline)) reader refill(reader r) {
    if (__builtin_expect(r.end - r.at >= 8, 1)) {
        uint64_t next;
        memcpy(&next, r.at, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        next = __builtin_bswap64(next);
#endif
        r.bits |= next >> r.count;
        r.at += (63 - r.count) >> 3;
        r.count |= 56;
    } else {
        r.over += (r.count | 56) - r.count; /* past the end, all bits are zero */
        r.count |= 56;
    }
    return r;
}

static inline __attribute__((always_inline)) reader drop(reader r, int bits) {
    r.bits <<= bits;
    r.count -= bits;
    return r;
}

/* Returns how many bits since `begin` were dropped. */
static inline int64_t taken(reader r, const uint8_t *begin) { return 8 * (int64_t)(r.at - begin) - r.count + r.over; }

/* Returns the entry of a code longer than LOOK bits; 0 if there is none. */
static __attribute__((noinline)) uint32_t long_entry(uint64_t bits, const table *t, int is_ac) {
    int code = (int)(bits >> 48);
    for (int length = LOOK + 1; length <= 16; length++)
        if (code < t->last[length]) {
            int place = (code >> (16 - length)) + t->shift[length];
            return place < 0 || place >= t->count ? 0 : entry_of(t->symbol[place], length, is_ac);
        }
    return 0;
}

/* Returns the value that follows an entry's code. Branch-free, because the value is unpredictable. */
static inline __attribute__((always_inline)) int value_of(uint64_t bits, uint32_t entry) {
    int size = entry >> 16 & 255;
    int64_t rest = (int64_t)(bits << (entry >> 8 & 255));
    return (int)((uint64_t)rest >> 1 >> (63 - size)) - (int)(~(rest >> 63) & ((1 << size) - 1));
}

/* Decodes one block. If `keep`, writes its coefficients to `block` (natural order), which must be zero before. Returns
 * the index after the last coefficient: 1 if there is only the first, more than 64 if the block is damaged. */
static inline __attribute__((always_inline)) int decode_block(
    reader *from, const table *dc, const table *ac, int *predicted, int16_t *block, int keep) {
    reader r = refill(*from);
    uint32_t entry = dc->entry[r.bits >> (64 - LOOK)];
    if (!entry && !(entry = long_entry(r.bits, dc, 0))) return 65;
    *predicted += value_of(r.bits, entry);
    r = drop(r, entry & 255);
    if (*predicted < -32768 || *predicted > 32767) return 65;
    if (keep) block[0] = (int16_t)*predicted;
    int place = 1;
    do {
        r = refill(r); /* enough bits for two codes and their values, unless they are long */
        for (int i = 0; i < 2; i++) {
            entry = ac->entry[r.bits >> (64 - LOOK)];
            if (__builtin_expect(entry < 1 << 24, 0)) {
                if (!entry) {
                    r = refill(r);
                    if (!(entry = long_entry(r.bits, ac, 1))) return 65;
                }
                if (entry < 1 << 24) { /* like libjpeg: any run of fewer than 16 without a value ends the block */
                    *from = drop(r, entry & 255);
                    return place;
                }
            }
            place += entry >> 24;
            if (keep) block[natural[place - 1]] = (int16_t)value_of(r.bits, entry);
            r = drop(r, entry & 255);
            if (place >= 64) break;
        }
    } while (place < 64);
    *from = r;
    return place;
}

/* ---- Inverse DCT ---- */

#define F_0_298 2446
#define F_0_390 3196
#define F_0_541 4433
#define F_0_765 6270
#define F_0_899 7373
#define F_1_175 9633
#define F_1_501 12299
#define F_1_847 15137
#define F_1_961 16069
#define F_2_053 16819
#define F_2_562 20995
#define F_3_072 25172

/* jidctint.c's butterfly on eight vectors. Results are shifted right by `shift`, rounded. */
static inline __attribute__((always_inline)) void butterfly(v8 *x, int shift) {
    v8 z1 = (x[2] + x[6]) * F_0_541, half = (v8){0} + (1 << (shift - 1));
    v8 t2 = z1 - x[6] * F_1_847, t3 = z1 + x[2] * F_0_765;
    v8 t0 = ((x[0] + x[4]) << 13) + half, t1 = ((x[0] - x[4]) << 13) + half;
    v8 e0 = t0 + t3, e3 = t0 - t3, e1 = t1 + t2, e2 = t1 - t2;
    v8 a1 = x[7] + x[1], a2 = x[5] + x[3], a3 = x[7] + x[3], a4 = x[5] + x[1], a5 = (a3 + a4) * F_1_175;
    v8 o0 = x[7] * F_0_298, o1 = x[5] * F_2_053, o2 = x[3] * F_3_072, o3 = x[1] * F_1_501;
    a1 = a1 * -F_0_899;
    a2 = a2 * -F_2_562;
    a3 = a3 * -F_1_961 + a5;
    a4 = a4 * -F_0_390 + a5;
    o0 += a1 + a3;
    o1 += a2 + a4;
    o2 += a2 + a3;
    o3 += a1 + a4;
    x[0] = (e0 + o3) >> shift;
    x[7] = (e0 - o3) >> shift;
    x[1] = (e1 + o2) >> shift;
    x[6] = (e1 - o2) >> shift;
    x[2] = (e2 + o1) >> shift;
    x[5] = (e2 - o1) >> shift;
    x[3] = (e3 + o0) >> shift;
    x[4] = (e3 - o0) >> shift;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (v8){__VA_ARGS__})
#endif

static inline __attribute__((always_inline)) void transpose(v8 *x) {
    v8 a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[2 * i + 1] = SHUFFLE(x[2 * i], x[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            b[4 * i + 2 * j] = SHUFFLE(a[4 * i + j], a[4 * i + 2 + j], 0, 1, 8, 9, 4, 5, 12, 13);
            b[4 * i + 2 * j + 1] = SHUFFLE(a[4 * i + j], a[4 * i + 2 + j], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        x[i] = SHUFFLE(b[i], b[4 + i], 0, 1, 2, 3, 8, 9, 10, 11);
        x[4 + i] = SHUFFLE(b[i], b[4 + i], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

static inline v8 blend(v8 mask, v8 yes, v8 no) { return (yes & mask) | (no & ~mask); }

static inline v8 clamp(v8 x, int low, int high) {
    v8 least = (v8){0} + low, most = (v8){0} + high;
    x = blend(x < least, least, x);
    return blend(x > most, most, x);
}

/* Transforms a block to 8x8 pixels. Returns 0 if a coefficient is out of range. */
static int inverse(const int16_t *block, const int32_t *quant, uint8_t *out, int64_t stride) {
    v8 x[8], set = {0};
    for (int row = 0; row < 8; row++) {
        x[row] = __builtin_convertvector(((const h8 *)block)[row], v8) * ((const v8 *)quant)[row];
        set |= x[row] ^ (x[row] >> 31); /* bits of the magnitudes */
    }
    int bits = 0;
    for (int i = 0; i < 8; i++) bits |= set[i];
    if (bits >= MAX_COEFFICIENT) return 0;
    butterfly(x, 11);
    for (int row = 0; row < 8; row++) x[row] = clamp(x[row], -32768, 32767);
    transpose(x);
    butterfly(x, 18);
    transpose(x);
    for (int row = 0; row < 8; row++) {
        b8 pixels = __builtin_convertvector(clamp(x[row] + 128, 0, 255), b8);
        memcpy(out + row * stride, &pixels, 8);
    }
    return 1;
}

static int flat(int coefficient, uint8_t *out, int64_t stride) {
    if (coefficient >= MAX_COEFFICIENT || coefficient < -MAX_COEFFICIENT) return 0;
    int pixel = ((coefficient + 4) >> 3) + 128;
    pixel = pixel < 0 ? 0 : pixel > 255 ? 255 : pixel;
    for (int row = 0; row < 8; row++) memset(out + row * stride, pixel, 8);
    return 1;
}

/* ---- Header ---- */

static int read_tables(frame *f, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        if (end - at < 17) return 0;
        int total = 0, kind = *at >> 4, number = *at & 15;
        for (int i = 1; i <= 16; i++) total += at[i];
        if (kind > 1 || number > 3 || total > 256 || end - at < 17 + total) return 0;
        if (!build(&f->tables[4 * kind + number], at + 1, at + 17, kind)) return 0;
        at += 17 + total;
    }
    return 1;
}

static int read_quants(frame *f, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int wide = *at >> 4, number = *at & 15;
        if (wide > 1 || number > 3 || end - at < 1 + (64 << wide)) return 0;
        for (int i = 0; i < 64; i++)
            f->quant[number][natural[i]] = wide ? at[1 + 2 * i] << 8 | at[2 + 2 * i] : at[1 + i];
        f->defined |= 1 << number;
        at += 1 + (64 << wide);
    }
    return 1;
}

static int read_frame(frame *f, const uint8_t *at, int64_t length) {
    if (f->components || length < 6 || at[0] != 8) return 0;
    f->height = at[1] << 8 | at[2];
    f->width = at[3] << 8 | at[4];
    f->components = at[5];
    if ((f->components != 1 && f->components != 3) || length != 6 + 3 * f->components || !f->width || !f->height) return 0;
    for (int i = 0; i < f->components; i++) {
        component *c = &f->part[i];
        c->id = at[6 + 3 * i];
        c->h = at[7 + 3 * i] >> 4;
        c->v = at[7 + 3 * i] & 15;
        c->quant = at[8 + 3 * i];
        if (c->quant > 3) return 0;
        if (i && (c->h != 1 || c->v != 1 || c->id == f->part[0].id || (i == 2 && c->id == f->part[1].id))) return 0;
    }
    component *first = &f->part[0];
    if (f->components == 1) return first->h == 1 && first->v == 1;
    return (first->h == 2 && first->v <= 2 && first->v >= 1) || (first->h == 1 && first->v == 1);
}

static int read_scan(frame *f, const uint8_t *at, int64_t length) {
    int count = f->components;
    if (!count || length != 4 + 2 * count || at[0] != count) return 0;
    for (int i = 0; i < count; i++) {
        component *c = &f->part[i];
        c->dc = at[2 + 2 * i] >> 4;
        c->ac = at[2 + 2 * i] & 15;
        if (at[1 + 2 * i] != c->id || c->dc > 3 || c->ac > 3 || !(f->defined >> c->quant & 1)) return 0;
        if (!f->tables[c->dc].count || !f->tables[4 + c->ac].count) return 0;
    }
    const uint8_t *spectrum = at + 1 + 2 * count;
    if (spectrum[0] != 0 || spectrum[1] != 63 || spectrum[2] != 0) return 0;
    if (count == 1 || f->jfif) return 1;
    if (f->adobe >= 0) return f->adobe == 1;
    return f->part[0].id == 1 && f->part[1].id == 2 && f->part[2].id == 3;
}

/* Reads everything before the entropy code. Returns the offset of the entropy code, or 0 to refuse the file. */
static int64_t read_header(frame *f, const uint8_t *data, int64_t length) {
    int64_t at = 2;
    if (length < 4 || data[0] != 0xff || data[1] != 0xd8) return 0;
    while (at + 4 <= length && data[at] == 0xff) {
        int marker = data[at + 1];
        int64_t size = data[at + 2] << 8 | data[at + 3];
        const uint8_t *body = data + at + 4;
        if (size < 2 || at + 2 + size > length) return 0;
        int64_t rest = size - 2;
        at += 2 + size;
        int good = 1;
        if (marker == 0xc4) good = read_tables(f, body, body + rest);
        else if (marker == 0xdb) good = read_quants(f, body, body + rest);
        else if (marker == 0xc0 || marker == 0xc1) good = read_frame(f, body, rest);
        else if (marker == 0xda) return read_scan(f, body, rest) ? at : 0;
        else if (marker == 0xdd) {
            good = rest == 2;
            if (good) f->interval = body[0] << 8 | body[1];
        } else if (marker == 0xe0) f->jfif |= rest >= 12 && !memcmp(body, "JFIF", 5);
        else if (marker == 0xee) {
            if (rest >= 12 && !memcmp(body, "Adobe", 5)) f->adobe = body[11];
        } else good = (marker > 0xe0 && marker < 0xf0) || marker == 0xfe;
        if (!good) return 0;
    }
    return 0;
}

/* ---- Entropy code ---- */

/* Copies the entropy code up to the next marker, without stuffed zeros, and advances `from` to that marker. */
static uint8_t *unstuff(const uint8_t **from, const uint8_t *end, uint8_t *to) {
    const uint8_t *at = *from;
    for (;;) {
        const uint8_t *mark = memchr(at, 0xff, end - at);
        const uint8_t *stop = mark ? mark : end;
        memcpy(to, at, stop - at);
        to += stop - at;
        if (!mark || end - mark < 2 || mark[1]) {
            *from = stop;
            return to;
        }
        *to++ = 0xff;
        at = mark + 2;
    }
}

/* Returns whether only restart markers follow until the image's end marker, and the file ends there. */
static int ends_well(const uint8_t *at, const uint8_t *end) {
    while (at && end - at > 2) {
        if (at[1] && (at[1] & 0xf8) != 0xd0) return 0;
        at = memchr(at + 2, 0xff, end - at - 2);
    }
    return at && end - at == 2 && at[1] == 0xd9;
}

typedef struct { int left, top, right, bottom; } span; /* in MCUs, or in pixels */
typedef struct { uint8_t *pixels; int64_t stride; int x, y; /* place of its first pixel in the component */ } plane;

/* Decodes the MCUs of `kept` into the planes, and skips those before them. Returns 0 if the file is damaged. */
static int decode_scan(const frame *f, const uint8_t *at, const uint8_t *end, uint8_t *scratch, span kept, plane *planes) {
    int across = (f->width + 8 * f->part[0].h - 1) / (8 * f->part[0].h), predicted[3] = {0}, left = f->interval, restarts = 0;
    uint8_t *stop = unstuff(&at, end, scratch);
    memset(stop, 0, PAD);
    reader r = {scratch, stop + PAD, 0, 0, 0};
    int64_t bits = 8 * (int64_t)(stop - scratch);
    int16_t block[64 + 16] __attribute__((aligned(64)));
    for (int row = 0; row < kept.bottom; row++)
        for (int column = 0; column < across; column++) {
            if (f->interval && !left--) {
                int64_t used = taken(r, scratch);
                if (used > bits || bits - used >= 8) return 0;
                if (end - at < 2 || at[1] != 0xd0 + (restarts++ & 7)) return 0;
                at += 2;
                stop = unstuff(&at, end, scratch);
                memset(stop, 0, PAD);
                r = (reader){scratch, stop + PAD, 0, 0, 0};
                bits = 8 * (int64_t)(stop - scratch);
                predicted[0] = predicted[1] = predicted[2] = 0;
                left = f->interval - 1;
            }
            int keep = row >= kept.top && column >= kept.left && column < kept.right;
            for (int i = 0; i < f->components; i++) {
                const component *c = &f->part[i];
                const table *dc = &f->tables[c->dc], *ac = &f->tables[4 + c->ac];
                for (int part = 0; part < c->h * c->v; part++) {
                    if (!keep) {
                        if (decode_block(&r, dc, ac, &predicted[i], block, 0) > 64) return 0;
                        continue;
                    }
                    plane *p = &planes[i];
                    int x = 8 * (column * c->h + part % c->h) - p->x, y = 8 * (row * c->v + part / c->h) - p->y;
                    uint8_t *out = p->pixels + y * p->stride + x;
                    memset(block, 0, 128);
                    int behind = decode_block(&r, dc, ac, &predicted[i], block, 1);
                    if (behind > 64) return 0;
                    if (!(behind > 1 ? inverse(block, f->quant[c->quant], out, p->stride)
                               : flat(block[0] * f->quant[c->quant][0], out, p->stride))) return 0;
                }
            }
            if (taken(r, scratch) > bits) return 0;
        }
    return ends_well(at, end);
}

/* ---- Upsampling and colour ---- */

/* Upsamples columns [left, right) of a colour row to full width, like jdsample.c's h2v1_fancy_upsample. */
static void widen(const uint8_t *row, int first, int width, int left, int right, uint8_t *out) {
    for (int x = left; x < right; x++) {
        int at = x >> 1, side = x & 1 ? at + 1 : at - 1, here = row[at - first];
        if (side < 0 || side >= width) out[x - left] = (uint8_t)here;
        else out[x - left] = (uint8_t)((3 * here + row[side - first] + 1 + (x & 1)) >> 2);
    }
}

/* The same from two rows, the nearer one with weight 3, like h2v2_fancy_upsample. `sums` holds one row. */
static void widen_two(const uint8_t *near, const uint8_t *far, int first, int width, int left, int right, int16_t *sums, uint8_t *out) {
    int low = (left >> 1) - 1, high = ((right - 1) >> 1) + 2;
    if (low < 0) low = 0;
    if (high > width) high = width;
    for (int at = low; at < high; at++) sums[at - low] = (int16_t)(3 * near[at - first] + far[at - first]);
    int x = left;
    for (; x < right && (x < 2 || x & 1); x++) {
        int at = x >> 1, side = x & 1 ? at + 1 : at - 1, here = sums[at - low];
        int neighbour = side < 0 || side >= width ? here : sums[side - low];
        out[x - left] = (uint8_t)((3 * here + neighbour + 8 - (x & 1)) >> 4);
    }
    const int16_t *sum = sums + (x >> 1) - low;
    uint8_t *pair = out + x - left;
    int pairs = (right - x) >> 1;
    if ((x >> 1) + pairs >= width && pairs > 0) pairs = width - 1 - (x >> 1);
    if (pairs < 0) pairs = 0;
    for (int i = 0; i < pairs; i++) {
        pair[2 * i] = (uint8_t)((3 * sum[i] + sum[i - 1] + 8) >> 4);
        pair[2 * i + 1] = (uint8_t)((3 * sum[i] + sum[i + 1] + 7) >> 4);
    }
    for (x += 2 * pairs; x < right; x++) {
        int at = x >> 1, side = x & 1 ? at + 1 : at - 1, here = sums[at - low];
        int neighbour = side < 0 || side >= width ? here : sums[side - low];
        out[x - left] = (uint8_t)((3 * here + neighbour + 8 - (x & 1)) >> 4);
    }
}

static inline uint8_t byte_of(int x) { return (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x); }

/* jdcolor.c's ycc_rgb_convert, with arithmetic in place of its tables. */
static void to_rgb(const uint8_t *restrict y, const uint8_t *restrict cb, const uint8_t *restrict cr, int count, uint8_t *restrict out) {
    for (int i = 0; i < count; i++) {
        int blue = cb[i] - 128, red = cr[i] - 128;
        out[3 * i] = byte_of(y[i] + ((91881 * red + 32768) >> 16));
        out[3 * i + 1] = byte_of(y[i] + ((-22554 * blue - 46802 * red + 32768) >> 16));
        out[3 * i + 2] = byte_of(y[i] + ((116130 * blue + 32768) >> 16));
    }
}

static void convert(const frame *f, const plane *planes, span region, uint8_t *rows, int16_t *sums, uint8_t *out) {
    int count = region.right - region.left, h = f->part[0].h, v = f->part[0].v;
    for (int y = region.top; y < region.bottom; y++, out += 3 * (int64_t)count) {
        const uint8_t *light = planes[0].pixels + (y - planes[0].y) * planes[0].stride + region.left - planes[0].x;
        const uint8_t *colours[2];
        if (f->components == 1) {
            for (int i = 0; i < count; i++) out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = light[i];
            continue;
        }
        for (int i = 0; i < 2; i++) {
            const plane *p = &planes[1 + i];
            const component *c = &f->part[1 + i];
            int at = y / v, side = v == 1 ? at : y & 1 ? at + 1 : at - 1;
            side = side < 0 ? 0 : side >= c->height ? c->height - 1 : side;
            const uint8_t *near = p->pixels + (at - p->y) * p->stride, *far = p->pixels + (side - p->y) * p->stride;
            uint8_t *wide = rows + i * (int64_t)count;
            if (h == 1) colours[i] = near + region.left - p->x;
            else {
                if (v == 1) widen(near, p->x, c->width, region.left, region.right, wide);
                else widen_two(near, far, p->x, c->width, region.left, region.right, sums, wide);
                colours[i] = wide;
            }
        }
        to_rgb(light, colours[0], colours[1], count, out);
    }
}

/* Decodes pixels [left, right) x [top, bottom) of the JPEG to `out`, packed. Returns 0 if the file is refused; `out` may
 * have been written to then. */
int jpeg_region(const uint8_t *data, int64_t length, int left, int top, int right, int bottom, uint8_t *out) {
    static const frame empty = {.adobe = -1};
    frame f = empty;
    plane planes[3] = {{0}};
    uint8_t *memory = NULL;
    int done = 0;
    f.tables = calloc(8, sizeof(table));
    int64_t at = f.tables ? read_header(&f, data, length) : 0;
    if (!at || left < 0 || top < 0 || left >= right || top >= bottom || right > f.width || bottom > f.height) goto end;
    int h = f.part[0].h, v = f.part[0].v, width = 8 * h, height = 8 * v;
    for (int i = 0; i < f.components; i++) {
        f.part[i].width = (f.width * f.part[i].h + h - 1) / h;
        f.part[i].height = (f.height * f.part[i].v + v - 1) / v;
    }
    if (h > 1 && f.part[1].width <= 2) goto end; /* libjpeg uses another filter for these widths */
    /* the smooth filters read two more pixels on each side */
    span kept = {left - 2, top - 2, right + 2, bottom + 2};
    kept.left = kept.left < 0 ? 0 : kept.left / width;
    kept.top = kept.top < 0 ? 0 : kept.top / height;
    kept.right = ((kept.right < f.width ? kept.right : f.width) + width - 1) / width;
    kept.bottom = ((kept.bottom < f.height ? kept.bottom : f.height) + height - 1) / height;
    int64_t across = kept.right - kept.left, down = kept.bottom - kept.top, count = right - left, sizes[3];
    int64_t needed = (length - at) + PAD + 4 * count + 64;
    for (int i = 0; i < f.components; i++) {
        sizes[i] = 64 * across * f.part[i].h * down * f.part[i].v;
        needed += sizes[i];
    }
    memory = malloc(needed);
    if (!memory) goto end;
    int16_t *sums = (int16_t *)memory; /* half the columns, and a few more */
    uint8_t *rows = memory + count + 64, *scratch = rows + 2 * count;
    uint8_t *pixels = scratch + (length - at) + PAD;
    for (int i = 0; i < f.components; i++) {
        const component *c = &f.part[i];
        planes[i] = (plane){pixels, 8 * across * c->h, 8 * kept.left * c->h, 8 * kept.top * c->v};
        pixels += sizes[i];
    }
    done = decode_scan(&f, data + at, data + length, scratch, kept, planes);
    if (done) convert(&f, planes, (span){left, top, right, bottom}, rows, sums, out);
end:
    free(memory);
    free(f.tables);
    return done;
}
