/**
 * The page's style. Series colours are Okabe and Ito's, which people with any kind of colour blindness tell apart,
 * darkened on white (and lightened on black) until text in them has a contrast of at least 4.5.
 */
export const STYLE = `
:root { color-scheme: light dark; --page: #f4f5f6; --card: #ffffff; --ink: #1b1f23; --muted: #59636e; --grid: #e4e7ea;
  --thin: #b4bcc4; --idle: #d9dde1; --blue: #0072b2; --orange: #b35000; --green: #00795a; --sky: #56b4e9;
  --yellow: #e69f00; --purple: #cc79a7; --grey: #8b949e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1214; --card: #171b1f; --ink: #e6e9ec; --muted: #9aa5b0; --grid: #2a3036; --thin: #4d5761;
    --idle: #333a41; --blue: #56b4e9; --orange: #f0984a; --green: #2fbf97; --sky: #2f7fae; --yellow: #d9a521;
    --purple: #d18fb5; --grey: #717b85; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 14px/1.45 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 24px; display: grid; gap: 20px;
  grid-template-columns: repeat(2, minmax(0, 1fr)); }
header, footer, .wide { grid-column: 1 / -1; }
@media (max-width: 900px) { main { grid-template-columns: minmax(0, 1fr); padding: 16px; } }
h1 { margin: 0; font-size: 24px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 2px; font-size: 16px; }
p { margin: 0; color: var(--muted); overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 36px; margin: 16px 0 0; }
dt { color: var(--muted); font-size: 12px; }
dd { margin: 0; font-size: 16px; font-variant-numeric: tabular-nums; }
section { background: var(--card); border-radius: 8px; padding: 18px 24px 14px; display: flex; flex-direction: column; }
svg { display: block; width: 100%; height: auto; margin: 8px 0 6px; }
details { margin-top: auto; color: var(--muted); font-size: 13px; }
summary { cursor: pointer; width: max-content; }
.scroll { overflow: auto; max-height: 420px; }
table { border-collapse: collapse; margin: 8px 0; color: var(--ink); font-variant-numeric: tabular-nums; }
th, td { padding: 2px 14px 2px 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--thin); }
th:first-child, td:first-child { text-align: left; }
ul { margin: 4px 0; padding-left: 20px; color: var(--muted); }
footer { color: var(--muted); font-size: 12px; overflow-wrap: anywhere; }
text { fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }
.tick, .axis, .quiet { fill: var(--muted); }
.strong { font-weight: 600; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.segment { stroke: var(--card); stroke-width: 1; }
.small { font-size: 10.5px; }
.halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--grid); } .base { stroke: var(--thin); } .mark { stroke: var(--ink); }
.dashed { stroke-dasharray: 4 3; }
.line { fill: none; stroke: var(--thin); stroke-width: 1; stroke-linejoin: round; }
.line.thick { stroke-width: 2.25; }
.line.ink { stroke: var(--ink); }
.line.blue { stroke: var(--blue); } .line.orange { stroke: var(--orange); } .line.green { stroke: var(--green); }
.hollow { fill: var(--card); stroke-width: 1.75; }
.hollow.blue { stroke: var(--blue); } .hollow.orange { stroke: var(--orange); } .hollow.ink { stroke: var(--ink); }
.ink { fill: var(--ink); } .blue { fill: var(--blue); } .orange { fill: var(--orange); } .green { fill: var(--green); }
.sky { fill: var(--sky); } .yellow { fill: var(--yellow); } .purple { fill: var(--purple); }
.grey { fill: var(--grey); } .idle { fill: var(--idle); } .thin { fill: var(--thin); }
.line, .hollow.blue, .hollow.orange, .hollow.ink { fill: none; }
.hollow.blue, .hollow.orange, .hollow.ink { fill: var(--card); }
@media print { body { background: none; } section { break-inside: avoid; } }
`;
