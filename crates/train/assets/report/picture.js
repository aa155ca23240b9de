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

/** One picture of a group, and what marks the cells on it that a completion was compared with: tokens from `first`. */
function framed(group, name, regions, first) {
  const image = run.images[name];
  if (!image) return { frame: sentence("The picture is missing."), mark: () => 0 };
  const shownImage = element("img", {
    src: image.source,
    // Enlarged, the pixels of a small picture are to be seen as what they are.
    class: image.width > 320 ? "photo" : "",
    width: String(image.width),
    height: String(image.height),
    decoding: "async",
    alt: `Picture of the question: ${group.question}`,
  });
  const frame = element("div", { class: "frame" }, shownImage);
  frame.style.setProperty("--ratio", image.width / image.height);
  if (!regions) return { frame, mark: () => 0 };
  const { rows, columns } = regions;
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
  const mark = (tokens) => {
    const selected = tokens.map((token) => token - first).filter((token) => token >= 0 && token < rows * columns);
    cells.setAttribute("d", marks(regions, selected));
    return selected.length;
  };
  return { frame, mark };
}

/** The figure of a group, and what marks on it the cells that one of its completions was compared with. */
function picture(group) {
  const caption = element("figcaption");
  // Visual tokens are counted through all images of a prompt.
  let cells = 0;
  const framedImages = group.images.map((name, place) => {
    const regions = group.regions?.[place];
    const made = framed(group, name, regions, cells);
    cells += regions ? regions.rows * regions.columns : 0;
    return made;
  });
  const figure = element("figure", { class: "picture" }, ...framedImages.map(({ frame }) => frame), caption);
  if (!group.regions) return { figure, mark: () => {} };
  const structures = ({ component, structured }) => new Set(component.filter((_, cell) => structured[cell])).size;
  const count = group.regions.reduce((sum, regions) => sum + structures(regions), 0);
  const mark = (evidence) => {
    const selected = framedImages.reduce((sum, { mark }) => sum + mark(evidence?.visual_tokens ?? []), 0);
    const compared = evidence ? `, ${selected} of ${cells} cells compared` : "";
    caption.textContent = `${count} ${count === 1 ? "region" : "regions"} with structure${compared}`;
  };
  return { figure, mark };
}
