// Where a client goes on.

import type { Frame } from "./types.js";

/** The cursor behind a frame. A hub of an older version says of no event where it stands. */
export const placeOf = (frame: Frame): string => frame.log_position || frame.event_id;
