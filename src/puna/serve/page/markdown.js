// Markdown to a tree of plain objects: what models write, in time linear in its length (but for nesting, which is
// bounded). Knows no elements (`prose.js` makes those), keeps no HTML: a tag in the text is text.
//
// Blocks:  { type: heading|paragraph|code|quote|list|table|rule, source, ... }   `source` tells whether one has changed
// Inlines: strings, and { type: strong|em|del|code|link|break, ... }
//
// Differences from CommonMark, on purpose: a single line break is kept, since models mean it; indented code, reference
// links and HTML are text, an image is a link; a link leads to http, https or mailto or is none.

const LONGEST = 2048; // label or target of a link
const DEEPEST = 12; // quotes in lists in quotes ...; what is nested deeper is plain text

const FENCE = /^( {0,3})(`{3,}|~{3,}) *([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*?))?(?: +#+)? *$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^ {0,3}\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

/** Returns the blocks of a text. */
export function parse(text) {
  return blocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
}

// Blocks --------------------------------------------------------------------------------------------------------------

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, end] = blockAt(lines, at, depth);
    found.push({ ...block, source: lines.slice(at, end).join("\n") });
    at = end;
  }
  return found;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return code(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, children: inline(heading[2] ?? "") }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (startsTable(lines, at)) return table(lines, at);
  return paragraph(lines, at);
}

function code(lines, at) {
  const [, indent, fence, language] = FENCE.exec(lines[at]);
  const closes = (line) => {
    const rest = line.trim();
    return rest.length >= fence.length && rest === fence[0].repeat(rest.length) && !line.startsWith("    ");
  };
  let end = at + 1;
  while (end < lines.length && !closes(lines[end])) end += 1;
  const body = lines.slice(at + 1, end).map((line) => line.replace(new RegExp(`^ {0,${indent.length}}`), ""));
  return [{ type: "code", language: language.toLowerCase(), text: body.join("\n") }, Math.min(end + 1, lines.length)];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ type: "quote", children: blocks(inner, depth + 1) }, end];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || RULE.test(lines[end]) || /\d/.test(item[2]) !== ordered) break;
    const [inner, next] = itemLines(lines, end, item);
    items.push(blocks(inner, depth + 1));
    end = next;
  }
  return [{ type: "list", ordered, start: ordered ? parseInt(first[2], 10) : null, items }, end];
}

/** Returns the lines of one item without its indent, and where the next line that is not its own stands. */
function itemLines(lines, at, [marker, indent, bullet, gap]) {
  const inside = indent.length + bullet.length + (gap.length > 4 ? 1 : Math.max(gap.length, 1));
  const own = [lines[at].slice(Math.min(marker.length, inside))];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const depth = line.search(/\S/);
    const isBlank = depth < 0;
    if (isBlank && followsInside(lines, end, inside)) own.push("");
    else if (isBlank || (depth < inside && startsBlock(lines, end))) break;
    else own.push(line.slice(Math.min(depth, inside)));
  }
  while (end < lines.length && !lines[end].trim() && continuesList(lines, end)) end += 1;
  return [own, end];
}

function followsInside(lines, at, inside) {
  const next = nextLine(lines, at);
  return next !== null && next.search(/\S/) >= inside;
}

function continuesList(lines, at) {
  const next = nextLine(lines, at);
  return next !== null && ITEM.test(next);
}

function nextLine(lines, at) {
  while (at < lines.length && !lines[at].trim()) at += 1;
  return at < lines.length ? lines[at] : null;
}

function startsTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !DELIMITERS.test(lines[at + 1])) return false;
  return lines[at + 1].includes("-") && cells(lines[at]).length === cells(lines[at + 1]).length;
}

function table(lines, at) {
  const head = cells(lines[at]).map(inline);
  const aligns = cells(lines[at + 1]).map((cell) => {
    if (!cell.endsWith(":")) return null;
    return cell.startsWith(":") ? "center" : "end";
  });
  let end = at + 2;
  const rows = [];
  for (; end < lines.length && lines[end].trim() && lines[end].includes("|"); end += 1) {
    const row = cells(lines[end]);
    rows.push(head.map((_, column) => inline(row[column] ?? "")));
  }
  return [{ type: "table", head, aligns, rows }, end];
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim());
  return [{ type: "paragraph", children: inline(text.join("\n")) }, end];
}

function startsBlock(lines, at) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(lines[at])) || startsTable(lines, at);
}

// Inlines -------------------------------------------------------------------------------------------------------------

const SPECIAL = /[\\`[<*_~\n]|!\[|https?:\/\//g;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const BARE = /https?:\/\/[^\s<>"`]+/y;
const SAFE = /^(?:https?:\/\/|mailto:)\S+$/i;
const KINDS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

/** Returns the inlines of a text. */
export function inline(text, depth = 0) {
  const found = [];
  const missing = new Map(); // mark -> from where on it never closes: looked for once, so that time stays linear
  let plain = "";
  let at = 0;
  const push = (node) => {
    if (plain) found.push(plain);
    plain = "";
    found.push(node);
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at >= text.length) break;
    const taken = depth < DEEPEST ? inlineAt(text, at, depth, missing) : null;
    if (taken === null) {
      plain += text[at];
      at += 1;
    } else {
      if (typeof taken.node === "string") plain += taken.node;
      else push(taken.node);
      at = taken.end;
    }
  }
  if (plain) found.push(plain);
  return found;
}

function inlineAt(text, at, depth, missing) {
  switch (text[at]) {
    case "\\":
      return PUNCTUATION.test(text[at + 1] ?? "") ? { node: text[at + 1], end: at + 2 } : null;
    case "\n":
      return { node: { type: "break" }, end: at + 1 };
    case "`":
      return codeSpan(text, at, missing);
    case "[":
      return link(text, at, depth);
    case "!":
      return link(text, at + 1, depth); // a picture elsewhere: led to, never fetched
    case "<":
      return angleLink(text, at, missing);
    case "h":
      return bareLink(text, at);
    default:
      return emphasis(text, at, depth, missing);
  }
}

function isMissing(missing, mark, at) {
  return at >= (missing.get(mark) ?? Infinity);
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function codeSpan(text, at, missing) {
  const length = runLength(text, at);
  const mark = "`".repeat(length);
  if (!isMissing(missing, mark, at)) {
    for (let close = text.indexOf("`", at + length); close >= 0;) {
      const closing = runLength(text, close);
      if (closing === length) {
        const inner = text.slice(at + length, close).replace(/\n/g, " ");
        const isPadded = /^ .*[^ ].* $/.test(inner) || /^ [^ ] $/.test(inner);
        return { node: { type: "code", text: isPadded ? inner.slice(1, -1) : inner }, end: close + length };
      }
      close = text.indexOf("`", close + closing);
    }
    missing.set(mark, at);
  }
  return { node: mark, end: at + length };
}

function emphasis(text, at, depth, missing) {
  const character = text[at];
  const run = runLength(text, at);
  const mark = run === 1 ? character : character.repeat(2);
  const before = text[at - 1] ?? " ";
  const after = text[at + run] ?? " ";
  const opens = mark in KINDS && run <= 3 && !/\s/.test(after) && !(character === "_" && WORD.test(before));
  const close = opens && !isMissing(missing, mark, at) ? closingMark(text, at + mark.length, mark, missing) : -1;
  if (close < 0) {
    if (opens && !isMissing(missing, mark, at)) missing.set(mark, at);
    return { node: text.slice(at, at + run), end: at + run };
  }
  const children = inline(text.slice(at + mark.length, close), depth + 1);
  return { node: { type: KINDS[mark], children }, end: close + mark.length };
}

/** Returns where `mark` closes, -1 where it never does. Marks within code and after spaces do not count. */
function closingMark(text, from, mark, missing) {
  for (let at = from; at < text.length;) {
    if (text[at] === "\\") at += 2;
    else if (text[at] === "`") at = codeSpan(text, at, missing).end;
    else if (text[at] !== mark[0]) at += 1;
    else {
      const run = runLength(text, at);
      const fits = mark.length === 2 ? run >= 2 : run !== 2;
      const isClosing = at > from && !/\s/.test(text[at - 1]);
      const staysOpen = mark[0] === "_" && WORD.test(text[at + run] ?? " ");
      if (fits && isClosing && !staysOpen) return at + run - mark.length;
      at += run;
    }
  }
  return -1;
}

function link(text, at, depth) {
  const length = text.slice(at, at + LONGEST).indexOf("](");
  if (length < 0) return null;
  const label = text.slice(at + 1, at + length);
  const end = label.includes("[") ? -1 : closingParenthesis(text, at + length + 2);
  if (end < 0) return null;
  const inside = text.slice(at + length + 2, end).trim();
  const target = inside.replace(/\s+(?:"[^"]*"|'[^']*')$/, "").replace(/^<(.*)>$/, "$1"); // without title and brackets
  if (!SAFE.test(target)) return null;
  return { node: { type: "link", href: target, children: inline(label, depth + 1) }, end: end + 1 };
}

function closingParenthesis(text, from) {
  let open = 0;
  for (let at = from; at < Math.min(text.length, from + LONGEST) && text[at] !== "\n"; at += 1) {
    if (text[at] === "(") open += 1;
    else if (text[at] === ")") {
      if (open === 0) return at;
      open -= 1;
    }
  }
  return -1;
}

function angleLink(text, at, missing) {
  const end = isMissing(missing, ">", at) ? -1 : text.indexOf(">", at);
  if (end < 0) {
    missing.set(">", at);
    return null;
  }
  const target = text.slice(at + 1, end);
  return SAFE.test(target) ? { node: { type: "link", href: target, children: [target] }, end: end + 1 } : null;
}

function bareLink(text, at) {
  if (WORD.test(text[at - 1] ?? " ")) return null;
  BARE.lastIndex = at;
  let target = BARE.exec(text)?.[0] ?? "";
  for (;;) {
    const last = target.at(-1) ?? "";
    const isUnbalanced = last === ")" && count(target, "(") < count(target, ")");
    if (!isUnbalanced && !/[.,:;!?'"*_~\]]/.test(last)) break;
    target = target.slice(0, -1);
  }
  const node = { type: "link", href: target, children: [target] };
  return target.length > "https://".length ? { node, end: at + target.length } : null;
}

function count(text, character) {
  return text.split(character).length - 1;
}
