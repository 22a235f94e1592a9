/** A reader of XML as strict as the standard where pages could go wrong: nesting, attributes, entities, characters. */
export interface XmlElement {
  name: string;
  attributes: Record<string, string>;
  children: (XmlElement | string)[];
}

const NAME = "[A-Za-z_][\\w:.-]*";
const TAG = new RegExp(`<(/?)(${NAME})((?:\\s+${NAME}="[^"<]*")*)\\s*(/?)>`, "y");
const ATTRIBUTE = new RegExp(`(${NAME})="([^"]*)"`, "g");
const ENTITIES: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'" };
// oxlint-disable-next-line no-control-regex
const FORBIDDEN = /[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]|\p{Surrogate}/u;

/** Parses a document of one element, after an optional doctype. Throws at the first thing that is not well-formed. */
export function parseXml(source: string): XmlElement {
  const text = source.replace(/^<!doctype html>\s*/, "").trimEnd();
  if (FORBIDDEN.test(text)) throw new Error("a character that XML forbids");
  const root: XmlElement = { name: "", attributes: {}, children: [] };
  const open = [root];
  for (let at = 0; at < text.length;) {
    const next = text.indexOf("<", at);
    const end = next < 0 ? text.length : next;
    if (end > at) open.at(-1)!.children.push(unescape(text.slice(at, end)));
    if (next < 0) break;
    TAG.lastIndex = next;
    const [tag, closing, name, attributes, empty] = TAG.exec(text) ?? fail(text, next);
    at = next + tag.length;
    if (closing) {
      if (open.pop()!.name !== name || open.length === 0) fail(text, next);
      continue;
    }
    const element = { name: name!, attributes: readAttributes(attributes!), children: [] };
    open.at(-1)!.children.push(element);
    if (!empty) open.push(element);
  }
  const [document, ...more] = root.children;
  if (open.length > 1 || typeof document !== "object" || more.length > 0) throw new Error("expected one element");
  return document;
}

function readAttributes(text: string): Record<string, string> {
  const found: Record<string, string> = {};
  for (const [, name, value] of text.matchAll(ATTRIBUTE)) {
    if (Object.hasOwn(found, name!)) throw new Error(`attribute ${name} twice`);
    found[name!] = unescape(value!);
  }
  return found;
}

function unescape(text: string): string {
  return text.replace(/&([^;]*;?)/g, (whole, entity: string) => {
    const character = entity.endsWith(";") ? ENTITIES[entity.slice(0, -1)] : undefined;
    if (character === undefined) throw new Error(`unknown entity ${whole.slice(0, 20)}`);
    return character;
  });
}

function fail(text: string, at: number): never {
  throw new Error(`not well-formed: ${text.slice(Math.max(0, at - 40), at + 60)}`);
}

/** All elements below `from` that satisfy `condition`, in document order. */
export function findAll(from: XmlElement, condition: (element: XmlElement) => boolean): XmlElement[] {
  return from.children.flatMap((child) => {
    if (typeof child === "string") return [];
    return [...(condition(child) ? [child] : []), ...findAll(child, condition)];
  });
}

export const byName = (from: XmlElement, name: string): XmlElement[] => findAll(from, (e) => e.name === name);
export const byAttribute = (from: XmlElement, key: string, value: string): XmlElement[] =>
  findAll(from, ({ attributes }) => attributes[key] === value);

/** The text below an element. */
export const textOf = ({ children }: XmlElement): string =>
  children.map((child) => (typeof child === "string" ? child : textOf(child))).join("");
