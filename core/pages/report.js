// Each scrub draws one frame of its tall pictures, the one that its slider is at.
for (const box of document.querySelectorAll(".scrub")) {
  const range = box.querySelector("input"), clock = box.querySelector("output");
  const times = range.dataset.times.split(" ");
  const panels = [...box.querySelectorAll("figure")].map((figure) => ({
    pen: figure.querySelector("canvas").getContext("2d"),
    all: figure.querySelector("img"),
    value: figure.querySelector("span"),
    figures: figure.dataset.figures ? figure.dataset.figures.split(" ") : [],
  }));
  const draw = () => {
    const at = Number(range.value);
    clock.textContent = `${times[at]} s`;
    range.setAttribute("aria-valuetext", `${times[at]} seconds`);
    for (const { pen, all, value, figures } of panels) {
      const { width, height } = pen.canvas;
      if (all.complete) pen.drawImage(all, 0, at * height, width, height, 0, 0, width, height);
      value.textContent = figures.length ? figures[at] : "";
    }
  };
  range.addEventListener("input", draw);
  for (const { all } of panels) all.addEventListener("load", draw);
  draw();
}
for (const hidden of document.querySelectorAll(".needs-script")) hidden.hidden = false;
