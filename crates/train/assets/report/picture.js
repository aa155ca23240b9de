// A picture with what credit saw in it: outlines of the regions that carry structure, marks on selected cells.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** The edges between structured components and what is beside them, in units of cells. */
function outline({ rows, columns, component, structured }) {
  const inside = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns;
  const of = (row, column) => (inside(row, column) ? component[row * columns + column] : -1);
  const carries = (row, column) => inside(row, column) && structured[row * columns + column];
  const edge = (row, column, otherRow, otherColumn) =>
    of(row, column) !== of(otherRow, otherColumn) && (carries(row, column) || carries(otherRow, otherColumn));
  let path = "";
  for (let row = 0; row <= rows; row += 1) {
    for (let column = 0; column <= columns; column += 1) {
      if (column < columns && edge(row - 1, column, row, column)) path += `M${column} ${row}h1`;
      if (row < rows && edge(row, column - 1, row, column)) path += `M${column} ${row}v1`;
    }
  }
  return path;
}

/** Marks of the selected cells. */
function marks({ columns }, cells) {
  // Of a side of a cell; less where cells are so large that a mark would hide what is in them.
  const size = Math.min(0.24, 0.025 * columns);
  const start = (1 - size) / 2;
  return cells
    .map((token) => `M${(token % columns) + start} ${Math.floor(token / columns) + start}h${size}v${size}h-${size}z`)
    .join("");
}

/** The figure of a group, and what marks on it the cells that one of its completions was compared with. */
function picture(group) {
  const image = run.images[group.image];
  if (!image) return { figure: element("figure", {}, sentence("The picture is missing.")), mark: () => {} };
  const shownImage = element("img", {
    src: image.source,
    width: String(image.width),
    height: String(image.height),
    decoding: "async",
    alt: `Picture of the question: ${group.question}`,
  });
  const frame = element("div", { class: "frame" }, shownImage);
  frame.style.setProperty("--ratio", image.width / image.height);
  const caption = element("figcaption");
  const figure = element("figure", { class: "picture" }, frame, caption);
  const regions = group.regions?.[0];
  if (!regions) return { figure, mark: () => {} };
  const { rows, columns, component, structured } = regions;
  const overlay = shape("svg", {
    viewBox: `0 0 ${columns} ${rows}`,
    preserveAspectRatio: "none",
    "aria-hidden": "true",
  });
  const edges = outline(regions);
  const cells = shape("path", { class: "cells", d: "" });
  overlay.append(
    shape("path", { class: "halo outline", d: edges }),
    shape("path", { class: "outline", d: edges }),
    cells,
  );
  frame.append(overlay);
  const count = new Set(component.filter((_, cell) => structured[cell])).size;
  const mark = (evidence) => {
    // Visual tokens are counted through all images of a prompt; this is the first of them.
    const selected = (evidence?.visual_tokens ?? []).filter((token) => token < rows * columns);
    cells.setAttribute("d", marks(regions, selected));
    const compared = evidence ? `, ${selected.length} of ${rows * columns} cells compared` : "";
    const first = group.regions.length > 1 ? `first of ${group.regions.length} images: ` : "";
    caption.textContent = `${first}${count} ${count === 1 ? "region" : "regions"} with structure${compared}`;
  };
  return { figure, mark };
}
