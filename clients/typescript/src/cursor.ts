// The cursor from which a client resumes.

import type { Frame } from "./types.js";

/** Returns the cursor after a frame. Hubs of older versions send no `log_position`. */
export const cursorAfter = (frame: Frame): string => frame.log_position || frame.event_id;
