import torch
from collections import namedtuple
KMeans=namedtuple('KMeans','labels centroids inertia')
def eq1_features(images,saliency,keep=.3,spatial_weight=1.5,intensity_weight=1.2,feature='intensity',raw=False):
    b,h,w=images.shape; n=max(1,int(keep*h*w))
    images=images.float()/255 if images.dtype==torch.uint8 else images.float()
    pixels=saliency.flatten(1).float().topk(n,dim=1).indices if keep<1 else torch.arange(n).expand(b,n)
    s=saliency.flatten(1).float(); s=(s-s.amin(1,True))/(s.amax(1,True)-s.amin(1,True)).clamp(min=1e-8)
    third=(images.flatten(1) if feature=='intensity' else s).gather(1,pixels)
    x=(pixels%w)/(w-1); y=(pixels//w)/(h-1)
    return torch.stack([x*spatial_weight,y*spatial_weight,third*intensity_weight],-1),pixels
def kmeans(points,centroids,weights=None,n_iter=10,chunk=None,generator=None):
    b,n,d=points.shape; c=centroids.expand(b,-1,-1) if centroids.ndim==2 else centroids
    def assign(c): return torch.baddbmm(c.square().sum(-1)[:,None],points,c.transpose(1,2),alpha=-2).argmin(-1)
    for _ in range(n_iter):
        o=torch.nn.functional.one_hot(assign(c),c.shape[1]).float(); k=o.sum(1)[...,None]
        c=torch.where(k>0,torch.bmm(o.transpose(1,2),points)/k.clamp(min=1),c)
    l=assign(c)
    return KMeans(l,c,None)
def shared_centroids(points,n_clusters,weights=None,seed=0):
    if n_clusters>points.shape[1]: raise ValueError('n_clusters too large')
    g=torch.Generator().manual_seed(seed); p=points.flatten(0,1)[None]
    c=p[0,torch.randperm(p.shape[1],generator=g)[:1]]
    for _ in range(n_clusters-1):
        d=torch.cdist(p[0],c).amin(1)**2; c=torch.cat([c,p[0,torch.multinomial(d,1,generator=g)]])
    c=kmeans(p,c,n_iter=30).centroids[0]
    return c[c[:,0].argsort()]
def cluster_maps(labels,pixels,shape):
    m=torch.zeros(len(labels),shape[0]*shape[1],dtype=torch.uint8)
    return m.scatter_(1,pixels,(labels+1).byte()).view(-1,*shape)
