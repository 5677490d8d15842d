"""A third party's plugin: its spec, and the hooks that longtake finds it by."""

from attrs import field, frozen

from longtake.authors import CompressorSpec, Plugin, Rate, doc, impl, instance_of


@frozen(kw_only=True)
class MeanPool(CompressorSpec):
    """The DiT's own tokens, averaged over blocks, times a learned gain."""

    rate: Rate = field(
        default=Rate(height=2, width=2, time=2),
        validator=instance_of(Rate),
        metadata=doc("latent cells a memory cell stands for, HxWxT"),
    )


@impl
def longtake_compressors():
    record = Plugin(
        name="mean-pool",
        summary="the DiT's own tokens, averaged over blocks",
        spec=MeanPool,
        target="longtake_pool.compressor:MeanPoolCompressor",
    )
    return [record]


@impl
def longtake_experiments():
    return {"mean-pool-tiny": "longtake_pool.experiments:TINY"}
