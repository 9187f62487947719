/* ctl_codec: ctl_msg values to the bytes of proto/baton/control/v1 and back.
 * Flow:    cores -> [ctl_codec] -> Attach stream -> [ctl_codec] -> cores
 * Thread:  one codec per thread.
 * Memory:  two arenas that settle at the size of the largest message; after that nothing is
 *          allocated. */
#ifndef BATON_CONTROL_CTL_CODEC_H
#define BATON_CONTROL_CTL_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"

struct ctl_codec;

#define CTL_MESSAGE_BYTES_MAX (1u << 30)

/* message_bytes_max bounds one encoded message, 1 .. CTL_MESSAGE_BYTES_MAX, and the memory a
 * hostile one can take: at most 128 times as much while decoding, where a message of nothing
 * but empty submessages is refused. An honest one takes about 40 times its bytes at worst
 * (log-probabilities without alternatives). */
NODISCARD status_t ctl_codec_create(size_t message_bytes_max, struct ctl_codec **ret_codec);
void ctl_codec_destroy(struct ctl_codec *codec); /* takes NULL */

/* Which of the two oneofs the bytes are. */
enum ctl_direction { CTL_FROM_ROUTER, CTL_FROM_NODE };

/* ret_bytes  borrowed from the codec until its next encode.
 * Errors  RESOURCE_EXHAUSTED (request): the message is larger than message_bytes_max. */
NODISCARD status_t ctl_codec_encode(struct ctl_codec *codec, const struct ctl_msg *msg, const uint8_t **ret_bytes,
                                    size_t *ret_byte_count);

/* ret_msg  its pointers are borrowed from the codec until its next decode.
 * Checks the shape only: every required submessage is there, counts fit. Whether the values
 * make sense is the core's question.
 * Errors  INVALID_ARGUMENT (peer), diag says what is missing or malformed. */
NODISCARD status_t ctl_codec_decode(struct ctl_codec *codec, enum ctl_direction direction, const uint8_t *bytes,
                                    size_t byte_count, struct ctl_msg *ret_msg, struct diag *diag);

#endif
