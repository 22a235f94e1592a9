/**
 * Elements of a page as values. Text that comes from a file can only enter as a string, and every string is escaped:
 * nothing but {@link element} makes markup. What it makes is well-formed XML, so HTML and SVG are written alike.
 */
export class Markup {
  readonly #text: string;

  private constructor(text: string) {
    this.#text = text;
  }

  toString(): string {
    return this.#text;
  }

  /** @internal for {@link element} and {@link styleSheet} */
  static of(text: string): Markup {
    return new Markup(text);
  }
}

export type Child = Markup | string | undefined | readonly Child[];

/** Numbers are written with two decimals, which is finer than a pixel. */
export type Attributes = Record<string, string | number | undefined>;

/** `<name …>…</name>`. Throws when an attribute is a number that is none: a picture never shows NaN. */
export function element(name: string, attributes: Attributes, ...children: Child[]): Markup {
  let text = `<${name}`;
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined) text += ` ${key}="${typeof value === "number" ? decimal(value) : escape(value)}"`;
  }
  return Markup.of(children.length === 0 ? `${text}/>` : `${text}>${render(children)}</${name}>`);
}

/** A `<style>` of our own rules: CSS is not escaped, so it must not hold `<` or `&`. */
export function styleSheet(css: string): Markup {
  if (/[<&]/.test(css)) throw new Error("a style sheet in a page must not hold < or &");
  return Markup.of(`<style>${css}</style>`);
}

function render(child: Child): string {
  if (child === undefined) return "";
  if (typeof child === "string") return escape(child);
  return child instanceof Markup ? child.toString() : child.map(render).join("");
}

const ENTITIES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

/** Characters that XML has no way to write: controls, lone surrogates, U+FFFE and U+FFFF. */
// oxlint-disable-next-line no-control-regex
const UNWRITABLE = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]|\p{Surrogate}/gu;

const escape = (text: string): string =>
  text.replace(UNWRITABLE, "\ufffd").replace(/[&<>"']/g, (character) => ENTITIES[character]!);

/** A coordinate: at most two decimals. */
export function decimal(value: number): string {
  if (!Number.isFinite(value)) throw new Error(`a picture asked for the coordinate ${value}`);
  return String(Math.round(value * 100) / 100 + 0);
}
