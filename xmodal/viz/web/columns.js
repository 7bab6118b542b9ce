// The image views: as many as cameras are chosen, once for each network; those that can stay are kept, so nothing flickers.

class ImageColumns {
  constructor({ hover, pick }) {
    this.acts = { hover, pick };
    this.columns = [0, 1].map(() => element("div", { className: "xm-images" }));
    this.views = [[], []]; // per network: {figure, caption, view, camera (its number)}
  }

  show(scene, cameras, sides, tables) {
    this.columns.forEach((column, s) => {
      const wanted = s < sides.length ? cameras : [];
      const views = this.views[s];
      column.hidden = !wanted.length;
      column.classList.toggle("xm-many", wanted.length > 1);
      while (views.length > wanted.length) views.pop().figure.remove();
      while (views.length < wanted.length) views.push(this.added(column));
      views.forEach((held, k) => {
        held.camera = wanted[k];
        const camera = scene.cameras[held.camera];
        held.caption.textContent = sides.length > 1 ? `${camera.name}, ${sides[s].network}` : camera.name;
        held.view.show(camera, held.caption.textContent, tables.depth);
      });
    });
  }

  added(column) {
    const held = { figure: element("figure"), caption: element("figcaption"), camera: 0 };
    const at = (u, v) => ({ kind: "pixel", camera: held.camera, u, v });
    held.view = new ImageView(held.figure, {
      hover: (u, v) => this.acts.hover(u === null ? null : at(u, v)),
      pick: (u, v, event) => this.acts.pick(at(Math.round(u), Math.round(v)), event.shiftKey),
    });
    held.figure.append(held.caption);
    column.append(held.figure);
    return held;
  }

  each(act) { // act(view, number of its camera, number of its network)
    this.views.forEach((views, s) => views.forEach(({ view, camera }) => act(view, camera, s)));
  }

  canvases() {
    return this.views.map((views) => views.map(({ view }) => view.canvas)).filter((images) => images.length);
  }
}
