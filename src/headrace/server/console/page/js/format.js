// Numbers for people. null and undefined are a dash: nothing was measured.

const NONE = "–";

export function number(value, digits = 1) {
  if (value == null) return NONE;
  if (value >= 10000) return `${(value / 1000).toFixed(value >= 100000 ? 0 : 1)}k`;
  return value >= 100 ? value.toFixed(0) : value.toFixed(value === 0 ? 0 : digits);
}

export const count = (value) => (value == null ? NONE : Math.round(value).toLocaleString("en-US"));

/** A short time: 41 ms, 1.24 s. */
export function short(seconds) {
  if (seconds == null) return NONE;
  if (seconds < 0.00095) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 0.00995) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${(seconds * 1e3).toFixed(0)} ms`;
  return seconds < 100 ? `${seconds.toFixed(2)} s` : `${seconds.toFixed(0)} s`;
}

/** A long time, its two largest units: 3 h 12 min. */
export function long(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export const share = (value) => (value == null ? NONE : `${(value * 100).toFixed(0)} %`);

export function bytes(value) {
  if (!value) return NONE;
  return value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${(value / 1e6).toFixed(0)} MB`;
}

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");

/** Words of the wire for people: crash_loop is "crash loop". */
export const words = (name) => name.replaceAll("_", " ");

/** The end of an id tells requests apart; its beginning says what it is. */
export const brief = (id) => (id.length <= 22 ? id : `${id.slice(0, 9)}…${id.slice(-8)}`);
